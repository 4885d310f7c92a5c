"""Log lines: cutting, levels, limits, and the store that keeps them."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.meshos import logs
from substrate.meshos.capture import LogCapture, RateLimit
from substrate.meshos.loglines import Level, LineSplitter, LogLine, LogSource, Stream, detect_level, printable
from substrate.meshos.logs import LogStore, StoredLine
from substrate.redex import Lagged, Retention
from substrate.wire.errors import NetError
from substrate.wire.times import now_ms

SOURCE = LogSource(2**64 - 1, "web", 3)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(45):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.003)


# --- cutting ---


def cut(*chunks: bytes, max_bytes: int = 16) -> list[tuple[str, bool]]:
    splitter = LineSplitter(max_bytes)
    return [text for chunk in chunks for text in splitter.feed(chunk)] + splitter.flush()


def test_lines_are_cut_at_their_ends() -> None:
    assert cut(b"one\ntwo\r\n\nthr", b"ee\r", b"\nlast") == [
        ("one", False), ("two", False), ("", False), ("three", False), ("last", False),
    ]  # fmt: skip
    assert cut(b"done\n") == [("done", False)]
    assert cut() == []


def test_long_lines_are_cut_and_flagged() -> None:
    assert cut(b"x" * 40 + b"\n") == [("x" * 16, True), ("x" * 16, True), ("x" * 8, False)]
    assert cut(b"x" * 16 + b"\n") == [("x" * 16, False)]
    assert cut(b"x" * 10, b"x" * 10, b"\n") == [("x" * 16, True), ("xxxx", False)]


def test_characters_are_not_cut_through() -> None:
    assert cut("a€€€€€€".encode()) == [("a€€€€€", True), ("€", False)]
    assert cut("aa€€€€€€".encode()) == [("aa€€€€", True), ("€€", False)]
    assert cut("😀😀😀x😀😀".encode()) == [("😀😀😀x", True), ("😀😀", False)]


def test_invalid_utf_8_is_replaced_and_the_rest_kept() -> None:
    assert cut(b"a\xffb\x1b[31m\n") == [("a\ufffdb\x1b[31m", False)]
    assert cut(b"\x80" * 20) == [("\ufffd" * 16, True), ("\ufffd" * 4, False)]


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_nothing_is_lost_however_it_arrives(chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    pieces = cut(*chunks, max_bytes=7)
    joined = "".join(text + ("" if continued else "\n") for text, continued in pieces)
    assert pieces == cut(data, max_bytes=7) or b"\r" in data  # a \r at a cut may arrive before its \n
    whole = data if data.endswith(b"\n") or not data else data + b"\n"
    if data.isascii() and b"\r" not in data:
        assert joined.encode() == whole
    assert all(len(text.encode()) <= 7 * 3 for text, _ in pieces)


@given(st.text(max_size=200), st.integers(4, 20))
def test_text_survives_any_cut(text: str, max_bytes: int) -> None:
    line = text.replace("\n", " ").replace("\r", " ")
    pieces = cut(line.encode("utf-8", "replace"), max_bytes=max_bytes)
    assert "".join(piece for piece, _ in pieces) == line.encode("utf-8", "replace").decode()
    assert all(len(piece.encode()) <= max_bytes for piece, _ in pieces)


# --- levels ---


@pytest.mark.parametrize(
    ("message", "level"),
    [
        ("ERROR out of paper", "error"),
        ("[warn] low on paper", "warn"),
        ("(debug) x", "debug"),
        ("error: no such file", "error"),
        ("Warning: deprecated", "warn"),
        ("WARNING:root:careful", "warn"),
        ("2026-01-31T12:00:00.123Z ERROR boom", "error"),
        ("2026-01-31 12:00:00,123 [INFO] hello", "info"),
        ("[2026-01-31 12:00:00 +0000] [12] [CRITICAL] boot failed", "error"),
        ("12:00:00 notice: up", "info"),
        ("FATAL could not bind", "error"),
        ("TRACE x", "trace"),
        ('time=12 level=warn msg="x"', "warn"),
        ('level="error" msg=x', "error"),
        ('{"level":"error","msg":"x"}', "error"),
        ('{"severity":"WARNING"}', "warn"),
        ('{"level":50,"msg":"x"}', "error"),
        ('{"lvl":"debug"}', "debug"),
    ],
)
def test_a_level_that_is_named(message: str, level: Level) -> None:
    assert detect_level(message, "stdout") == level
    assert detect_level(message, "stderr") == level


@pytest.mark.parametrize(
    "message",
    [
        "", "hello", "error rates fell", "Information: none", "ERRORS everywhere", "no ERROR here", "errors: 0",
        '{"level":null}', '{"level":true}', '{"msg":"ERROR"}', "{broken ERROR", '{"level":"shout"}', "{\ud800}", "0" * 300,
    ],
)  # fmt: skip
def test_a_line_that_names_none(message: str) -> None:
    assert detect_level(message, "stdout") == "info"
    assert detect_level(message, "stderr") == "warn"


@given(st.text(max_size=400), st.sampled_from(["stdout", "stderr"]))
def test_levels_of_anything(message: str, stream: Stream) -> None:
    assert detect_level(message, stream) in ("trace", "debug", "info", "warn", "error")


def test_printable_leaves_nothing_that_moves_a_terminal() -> None:
    assert printable("\x1b[31mred\x07\r\n") == "\\x1b[31mred\\x07\\x0d\\x0a"
    assert printable("tab\tand ünïcode €") == "tab\tand ünïcode €"
    assert printable("\x9b2J \u202etxt \u2028") == "\\x9b2J \\u202etxt \\u2028"


@given(st.text())
def test_printable_of_anything(text: str) -> None:
    assert all(char == "\t" or (ord(char) >= 32 and not 0x7F <= ord(char) < 0xA0) for char in printable(text))


# --- capture ---


class Pipes:
    """A capture on two real pipes, with what it emitted."""

    def __init__(self, limit: RateLimit | None = None) -> None:
        self.lines: list[LogLine] = []
        out_r, self.out = os.pipe()
        err_r, self.err = os.pipe()
        self.readers = (out_r, err_r)
        self.capture = LogCapture(SOURCE, out_r, err_r, self.lines.append, now_ms, limit or RateLimit())

    def close(self) -> None:
        os.close(self.out)
        os.close(self.err)


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        return error.errno == errno.EBADF
    return False


def test_both_streams_with_source_and_level() -> None:
    async def test() -> None:
        pipes = Pipes()
        os.write(pipes.out, b"hello\nERROR bad\nno end")
        os.write(pipes.err, b"hm\n")
        await until(lambda: len(pipes.lines) == 3)
        pipes.close()
        await pipes.capture.finish()
        seen = [(line.stream, line.level, line.message) for line in sorted(pipes.lines, key=lambda line: line.stream)]
        assert sorted(seen) == sorted(
            [
                ("stdout", "info", "hello"),
                ("stdout", "error", "ERROR bad"),
                ("stdout", "info", "no end"),
                ("stderr", "warn", "hm"),
            ]
        )
        assert {(line.daemon_id, line.daemon, line.instance) for line in pipes.lines} == {(2**64 - 1, "web", 3)}
        assert all(abs(line.at_ms - now_ms()) < 60_000 for line in pipes.lines)
        assert all(closed(fd) for fd in pipes.readers)

    run(test)


def test_finish_does_not_wait_for_a_pipe_held_elsewhere() -> None:
    async def test() -> None:
        pipes = Pipes()
        os.write(pipes.out, b"half")
        started = time.monotonic()
        await pipes.capture.finish(0.1)
        assert time.monotonic() - started < 5
        assert [line.message for line in pipes.lines] == ["half"]
        assert all(closed(fd) for fd in pipes.readers)
        pipes.close()

    run(test)


def test_lines_over_the_rate_are_dropped_visibly_and_the_pipe_is_slowed() -> None:
    async def test() -> None:
        limit = RateLimit(lines_per_s=1, burst_lines=100, pause_ms=100, report_ms=20)
        pipes = Pipes(limit)
        os.set_blocking(pipes.out, False)
        written, started = 0, time.monotonic()
        while time.monotonic() - started < 0.8:
            try:
                written += os.write(pipes.out, b"x" * 63 + b"\n") // 64
            except BlockingIOError:
                await asyncio.sleep(0.001)
        # A pipe holds 64 KiB = 1024 lines; it was emptied once in 100 ms.
        assert written <= 1024 * 12
        pipes.close()
        await pipes.capture.finish()
        kept = [line for line in pipes.lines if line.stream == "stdout"]
        notes = [line for line in pipes.lines if line.stream == "node"]
        assert 100 <= len(kept) <= 110
        assert len(notes) >= 2 and all(note.level == "warn" and note.daemon == "web" for note in notes)
        dropped = sum(int(note.message.split()[0]) for note in notes)
        assert len(kept) + dropped == written
        assert pipes.capture.dropped_lines == 0

    run(test)


def test_bytes_are_limited_too() -> None:
    async def test() -> None:
        pipes = Pipes(RateLimit(bytes_per_s=1, burst_bytes=1000))
        for _ in range(5):
            os.write(pipes.out, b"y" * 400 + b"\n")
        pipes.close()
        await pipes.capture.finish()
        assert [line.message[:7] for line in pipes.lines] == ["y" * 7, "y" * 7, "3 lines"]

    run(test)


# --- store ---


@asynccontextmanager
async def log_store(path: Path, **options: Any) -> AsyncIterator[LogStore]:
    log = LogStore.open(path, **options)
    try:
        yield log
    finally:
        await log.close()


def line(number: int, **fields: Any) -> LogLine:
    return LogLine(1000 + number, fields.pop("level", "info"), "stdout", f"line {number}", **fields)


def messages(found: list[StoredLine]) -> list[str]:
    return [stored.line.message for stored in found]


def test_lines_are_kept_in_order_and_survive_a_reopening(tmp_path: Path) -> None:
    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            for number in range(1000):
                log.append(line(number, daemon_id=2**64 - 1, daemon="web", instance=3, continued=number == 5))
            await log.flush()
            found = await log.query(limit=10_000)
            assert messages(found) == [f"line {number}" for number in range(1000)]
            assert [stored.seq for stored in found] == list(range(1, 1001))
            log.append(line(1000))
        async with log_store(tmp_path / "logs.db") as log:
            [last] = await log.query(limit=1)
            assert last == StoredLine(1001, line(1000))
            assert (await log.query(since=5, limit=1, newest=False))[0].line == line(
                5, daemon_id=2**64 - 1, daemon="web", instance=3, continued=True
            )

    run(test)


def test_queries(tmp_path: Path) -> None:
    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            levels: list[Level] = ["trace", "debug", "info", "warn", "error"]
            for number in range(2500):
                log.append(line(number, level=levels[number % 5], daemon_id=number % 3))
            assert len(await log.query(limit=10_000)) < 2500 or not log._pending  # stored in batches, soon
            await log.flush()
            assert messages(await log.query(limit=2)) == ["line 2498", "line 2499"]
            assert messages(await log.query(limit=2, newest=False)) == ["line 0", "line 1"]
            assert messages(await log.query(limit=2, since=10, newest=False)) == ["line 10", "line 11"]
            assert messages(await log.query(limit=10, since=2498)) == ["line 2498", "line 2499"]
            assert await log.query(since=2500) == [] == await log.query(since=9999, newest=False)
            errors = await log.query(limit=10_000, min_level="error")
            assert messages(errors) == [f"line {number}" for number in range(4, 2500, 5)]
            assert len(await log.query(limit=10_000, min_level="warn")) == 1000
            ones = await log.query(limit=10_000, daemon_id=1, min_level="error")
            assert messages(ones) == [f"line {number}" for number in range(2500) if number % 5 == 4 and number % 3 == 1]
            assert messages(await log.query(contains="line 17", limit=3, newest=False)) == [
                "line 17",
                "line 170",
                "line 171",
            ]
            assert messages(await log.query(contains="line 17", limit=2)) == ["line 1798", "line 1799"]
            assert await log.query(contains="nowhere") == []
            for limit in (0, 10_001):
                with pytest.raises(NetError) as error:
                    await log.query(limit=limit)
                assert error.value.kind == "invalid-argument"

    run(test)


def test_followers_see_every_line_once_and_end_with_the_log(tmp_path: Path) -> None:
    async def test() -> None:
        log = LogStore.open(tmp_path / "logs.db")

        everything: list[int] = []
        sevens: list[int] = []

        async def collect(into: list[int], **options: Any) -> None:
            async for batch in log.follow(**options):
                assert not isinstance(batch, Lagged)
                into += [stored.seq for stored in batch]

        log.append(line(0))
        await log.flush()
        followers = [
            asyncio.ensure_future(collect(everything, since=0)),
            asyncio.ensure_future(collect(sevens, since=1, contains="7")),
        ]
        live = log.follow()
        first = asyncio.ensure_future(anext(live))
        await until(lambda: everything == [1])
        for number in range(1, 600):
            log.append(line(number))
            if number % 50 == 0:
                await asyncio.sleep(0.005)
        await log.flush()
        batch = await first
        assert not isinstance(batch, Lagged) and batch[0].seq >= 2
        await live.aclose()  # type: ignore[attr-defined]
        with_seven = [number + 1 for number in range(1, 600) if "7" in str(number)]
        await until(lambda: everything == list(range(1, 601)) and sevens == with_seven)
        await log.close()
        await asyncio.gather(*followers)
        assert everything == list(range(1, 601)) and sevens == with_seven

    run(test)


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RETRY_S", 0.02)

    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            writer = log._store._writer
            assert writer is not None
            # SQLite then answers as it does on a disk without space.
            [[pages]] = writer.connection.execute("PRAGMA page_count").fetchall()
            writer.connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
            for number in range(500):
                log.append(line(number))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(log.flush(), 0.5)
            assert len(log._pending) > 0
            writer.connection.execute("PRAGMA max_page_count=1000000").fetchall()
            await log.flush()
            assert messages(await log.query(limit=10_000)) == [f"line {number}" for number in range(500)]

    run(test)


def test_a_store_that_fails_is_not_passed_over(tmp_path: Path) -> None:
    async def test() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        log = LogStore.open(tmp_path / "logs.db")
        log._store.close()  # what it writes to is gone
        log.append(line(0))
        with pytest.raises(NetError):
            await log.flush()
        with pytest.raises(NetError):
            await log.close()
        assert len(told) == 1 and isinstance(told[0]["exception"], NetError)

    run(test)


def test_retention_and_lag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SWEEP_S", 0.0)

    async def test() -> None:
        async with log_store(tmp_path / "logs.db", retention=Retention(max_records=100)) as log:
            for number in range(700):
                log.append(line(number))
            await log.flush()
            log.append(line(700))
            await log.flush()
            kept: list[StoredLine] = []

            async def swept() -> None:
                while True:
                    kept[:] = await log.query(limit=10_000, newest=False)
                    if len(kept) <= 100:
                        return
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(swept(), 10)
            assert messages(kept)[-1] == "line 700"
            assert await log.query(limit=10_000) == kept
            follower = log.follow(since=10)
            assert await anext(follower) == Lagged(11, kept[0].seq - 1)
            batch = await anext(follower)
            assert batch == kept
            await follower.aclose()  # type: ignore[attr-defined]

    run(test)


def test_an_overfull_log_counts_what_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_PENDING_LINES", 300)

    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            for number in range(500):  # without giving the loop a chance to store any
                log.append(line(number))
            await log.flush()
            found = await log.query(limit=10_000)
            texts = messages(found)
            assert [text for text in texts if text.startswith("line")] == [f"line {number}" for number in range(300)]
            [note] = [stored.line for stored in found if stored.line.stream == "node"]
            assert note.message == "200 lines dropped: the log cannot keep up" and note.level == "error"

    run(test)


def test_large_lines_fit_their_batches(tmp_path: Path) -> None:
    """The worst case: lines of control characters, which JSON writes six times as long."""

    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            for _ in range(20):
                log.append(LogLine(1, "info", "stdout", "\x01" * 16_384))
            await log.flush()
            found = await log.query()
            assert len(found) == 20 and found[0].line.message == "\x01" * 16_384

    run(test)


def test_what_the_node_says(tmp_path: Path) -> None:
    async def test() -> None:
        async with log_store(tmp_path / "logs.db", now_ms=lambda: 77) as log:
            log.note(None, "warn", "about itself")
            log.note(SOURCE, "error", "about a daemon")
            await log.flush()
            own, about = [stored.line for stored in await log.query()]
            assert own == LogLine(77, "warn", "node", "about itself")
            assert about == LogLine(77, "error", "node", "about a daemon", 2**64 - 1, "web", 3)

    run(test)


def test_capture_into_the_store(tmp_path: Path) -> None:
    async def test() -> None:
        async with log_store(tmp_path / "logs.db") as log:
            out_r, out_w = os.pipe()
            err_r, err_w = os.pipe()
            capture = log.attach(SOURCE, out_r, err_r)
            os.write(out_w, b"one\ntwo\n")
            os.close(out_w)
            os.close(err_w)
            await capture.finish()
            await log.flush()
            assert messages(await log.query(daemon_id=SOURCE.daemon_id)) == ["one", "two"]

    run(test)

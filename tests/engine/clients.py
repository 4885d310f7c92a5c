"""Client processes for the engine tests: `python -m tests.engine.clients DIR VERB ...`, one report a line.

append CHAIN WRITER   append `WRITER:0`, `WRITER:1`, ... in order; report `SEQ PAYLOAD` for each; ends with stdin
tail CHAIN UNTIL      tail from seq 1; report each seq up to UNTIL
serve SUBJECT         report `ready`, then answer each request with its payload; ends with stdin
connect               report the broker's pid, then wait for the end of stdin
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from substrate.engine import Engine, Lagged
from substrate.engine.local import LocalEngine


def report(text: str) -> None:
    print(text, flush=True)


async def end_of_stdin() -> None:
    await asyncio.to_thread(sys.stdin.read)


async def append(engine: Engine, chain: str, writer: str) -> None:
    ending = asyncio.create_task(end_of_stdin())
    number = 0
    while not ending.done():
        for size in (1, 3):  # single records and entries of three take turns
            payloads = [f"{writer}:{number + n}" for n in range(size)]
            appended = await engine.append(chain, [payload.encode() for payload in payloads])
            for offset, payload in enumerate(payloads):
                report(f"{appended.first_seq + offset} {payload}")
            number += size


async def tail(engine: Engine, chain: str, until: str) -> None:
    async for item in engine.tail(chain, 1):
        if isinstance(item, Lagged):
            report(f"lagged {item.from_seq} {item.to_seq}")
            continue
        for record in item:
            report(str(record.seq))
        if item[-1].seq >= int(until):
            return


async def serve(engine: Engine, subject: str) -> None:
    async def echo(payload: bytes) -> bytes:
        return payload

    await engine.serve(subject, echo).ready()
    report("ready")
    await end_of_stdin()


async def connect(engine: Engine) -> None:
    report(str((await engine.status()).pid))
    await end_of_stdin()


async def main(directory: str, verb: str, *arguments: str) -> None:
    engine = await LocalEngine.connect(Path(directory), timeout_ms=15_000, call_timeout_ms=20_000)
    try:
        verbs: dict[str, Callable[..., Awaitable[None]]] = {
            "append": append,
            "tail": tail,
            "serve": serve,
            "connect": connect,
        }
        await verbs[verb](engine, *arguments)
    finally:
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""Key files: never readable by others, never overwritten, never half there, and silent about the seed."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate.identity import keyfile
from substrate.identity.keys import Keypair
from substrate.wire.errors import NetError
from tests.procs import wait_until

SEED = bytes(range(32))


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "config" / "operator")


@pytest.fixture
def no_umask() -> Iterator[None]:
    """The most careless of surroundings."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def refused(kind: str, directory: str, name: str = "alice") -> NetError:
    with pytest.raises(NetError) as caught:
        keyfile.load(directory, name)
    assert caught.value.kind == kind
    return caught.value


def tells_the_seed(error: BaseException, seed: bytes) -> bool:
    text = "".join(traceback.format_exception(error))
    if isinstance(error, NetError):
        text += json.dumps(error.document())
    return seed.hex()[:16] in text.lower() or seed.hex()[-16:] in text.lower()


def test_what_is_generated_is_private_whatever_the_umask(no_umask: None, directory: str) -> None:
    made = keyfile.generate(directory, "alice", "laptop")
    assert mode(made.path) == 0o600
    assert mode(directory) == mode(os.path.dirname(directory)) == 0o700
    assert os.listdir(directory) == ["alice.key"]
    loaded = keyfile.load(directory, "alice")
    assert loaded.keypair.seed() == made.keypair.seed()
    assert loaded.document() == made.document()


def test_the_document_and_the_repr_do_not_hold_the_seed(directory: str) -> None:
    made = keyfile.import_seed(directory, "alice", SEED)
    for text in (json.dumps(made.document()), repr(made), repr(made.keypair)):
        assert SEED.hex() not in text


def test_nothing_is_ever_overwritten(directory: str) -> None:
    made = keyfile.generate(directory, "alice")
    before = Path(made.path).read_bytes()
    for seed in (None, SEED):
        with pytest.raises(NetError) as caught:
            if seed is None:
                keyfile.generate(directory, "alice")
            else:
                keyfile.import_seed(directory, "alice", seed)
        assert caught.value.kind == "identity-exists"
        assert not tells_the_seed(caught.value, SEED)
    assert Path(made.path).read_bytes() == before
    assert os.listdir(directory) == ["alice.key"]


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_in_the_place_of_a_key_is_not_followed(directory: str, tmp_path: Path, dangling: bool) -> None:
    keyfile.generate(directory, "other")
    aim = tmp_path / "aim"
    if not dangling:
        aim.write_bytes(Path(directory, "other.key").read_bytes())
        aim.chmod(0o600)
    os.symlink(aim, os.path.join(directory, "alice.key"))
    with pytest.raises(NetError) as caught:
        keyfile.generate(directory, "alice")
    assert caught.value.kind == "identity-exists"
    assert aim.exists() is not dangling
    refused("io-error", directory)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o660, 0o777])
def test_a_key_others_can_reach_is_refused(directory: str, bits: int) -> None:
    made = keyfile.import_seed(directory, "alice", SEED)
    os.chmod(made.path, bits)
    error = refused("permissive-mode", directory)
    assert error.hint == f"chmod 600 {made.path}"
    assert error.exit_code == 5
    assert not tells_the_seed(error, SEED)
    os.chmod(made.path, 0o400)
    keyfile.load(directory, "alice")


@pytest.mark.parametrize("bits", [0o710, 0o701, 0o755, 0o777])
def test_a_directory_others_can_reach_is_refused(directory: str, bits: int) -> None:
    keyfile.generate(directory, "alice")
    os.chmod(directory, bits)
    assert refused("permissive-mode", directory).hint == f"chmod 700 {directory}"
    with pytest.raises(NetError) as caught:
        keyfile.generate(directory, "bob")
    assert caught.value.kind == "permissive-mode"
    assert os.listdir(directory) == ["alice.key"]


def test_what_is_no_file_is_refused_at_once(directory: str) -> None:
    keyfile.generate(directory, "other")
    os.mkfifo(os.path.join(directory, "pipe.key"), 0o600)  # reading one would wait for ever
    os.mkdir(os.path.join(directory, "folder.key"), 0o700)
    refused("invalid-config", directory, "pipe")
    refused("invalid-config", directory, "folder")


def test_an_unknown_name_lists_the_known_ones(directory: str) -> None:
    assert refused("identity-not-found", directory).hint == ("known: none; create it with: net identity generate alice")
    keyfile.generate(directory, "bob")
    assert "known: bob" in str(refused("identity-not-found", directory).hint)
    for name in ("../bob", "a/b", "", "ALICE"):
        refused("invalid-argument", directory, name)


def rewrite(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def test_a_stored_id_or_key_of_another_seed_is_refused(directory: str) -> None:
    made = keyfile.import_seed(directory, "alice", SEED)
    other = Keypair(bytes(32))
    content = Path(made.path).read_text()
    for mine, theirs in (
        (str(made.keypair.operator_id), str(other.operator_id)),
        (made.keypair.public_key.hex(), other.public_key.hex()),
        (SEED.hex(), other.seed().hex()),
    ):
        assert mine in content
        rewrite(made.path, content.replace(mine, theirs).encode())
        error = refused("key-mismatch", directory)
        assert not tells_the_seed(error, SEED) and not tells_the_seed(error, other.seed())


def test_a_truncated_file_is_refused_without_telling_the_seed(directory: str) -> None:
    made = keyfile.import_seed(directory, "alice", SEED, "a note")
    content = Path(made.path).read_bytes()
    note = content.index(b"note")
    for length in range(len(content)):
        rewrite(made.path, content[:length])
        try:
            loaded = keyfile.load(directory, "alice")
        except NetError as error:
            assert error.kind in ("invalid-config", "key-mismatch")
            assert not tells_the_seed(error, SEED)
        else:
            assert length >= note - 1 and loaded.keypair.seed() == SEED


def test_a_flipped_bit_never_yields_another_key(directory: str) -> None:
    made = keyfile.import_seed(directory, "alice", SEED)
    content = Path(made.path).read_bytes()
    refusals = 0
    for position in range(len(content)):
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            rewrite(made.path, bytes(damaged))
            try:
                assert keyfile.load(directory, "alice").keypair.seed() == SEED
            except NetError as error:
                refusals += 1
                assert error.kind in ("invalid-config", "key-mismatch")
                assert not tells_the_seed(error, SEED)
    assert refusals > len(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"version = 2\n",
        b'version = 1\nseed = "00"\n',
        b"version = 1\nseed = 7\n",
        b"a" * (keyfile.MAX_FILE_BYTES + 1),
    ],
)
def test_other_contents_are_no_keys(directory: str, content: bytes) -> None:
    made = keyfile.generate(directory, "alice")
    rewrite(made.path, content)
    refused("invalid-config", directory)


def test_a_write_that_fails_leaves_nothing(directory: str, tmp_path: Path) -> None:
    """A file size limit cuts the write short, as a full disk would."""
    keyfile.generate(directory, "other")
    code = (
        "import json, resource, signal, sys\n"
        "from substrate.identity import keyfile\n"
        "from substrate.wire.errors import NetError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try:\n    keyfile.import_seed(sys.argv[1], 'alice', bytes(range(32)))\n"
        "except NetError as error:\n    print(json.dumps(error.document()))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    done = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["error"]["kind"] == "io-error", done.stderr
    assert SEED.hex()[:16] not in done.stdout + done.stderr
    assert os.listdir(directory) == ["other.key"]


def test_a_draft_of_a_killed_process_is_no_key_and_in_nobodys_way(directory: str) -> None:
    keyfile.generate(directory, "other")
    Path(directory, ".alice.key.123.deadbeef").write_bytes(b"version = 1\nna")
    assert keyfile.names(directory) == ["other"]
    keyfile.generate(directory, "alice")
    assert keyfile.names(directory) == ["alice", "other"]


def test_no_directory_holds_no_names(directory: str) -> None:
    assert keyfile.names(directory) == []


WATCHER = """
import os, stat, sys
directory, wanted = sys.argv[1], int(sys.argv[2])
seen, inodes, bad = 0, set(), []
while seen < wanted or len(inodes) < 40:
    for name in os.listdir(directory):
        try:
            status = os.lstat(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        seen += 1
        inodes.add((status.st_ino, status.st_mtime_ns))
        if stat.S_IMODE(status.st_mode) != 0o600:
            bad.append((name, oct(status.st_mode)))
print(seen, len(inodes), bad[:5])
"""


def test_no_moment_shows_a_key_to_others(no_umask: None, directory: str) -> None:
    """Another process looks at every file of the directory 10 000 times while keys come, rotate and go."""
    keyfile.generate(directory, "steady")
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, directory, "10000"], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None

    def again() -> bool:
        made = keyfile.generate(directory, "alice")
        keyfile.begin_rotation(directory, "alice")
        rotated = keyfile.finish_rotation(directory, "alice")
        assert rotated.path == made.path
        for name in os.listdir(directory):
            if name.startswith("alice"):
                os.unlink(os.path.join(directory, name))
        return watcher.poll() is not None

    try:
        wait_until(again, 60, "10 000 looks at the keys")
        seen, inodes, bad = watcher.stdout.read().split(maxsplit=2)
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdout.close()
    assert int(seen) >= 10_000 and int(inodes) >= 40
    assert bad.strip() == "[]"


# Rotation


def test_a_rotation_from_begin_to_end(no_umask: None, directory: str) -> None:
    keyfile.import_seed(directory, "alice", SEED, "laptop")
    current, fresh = keyfile.begin_rotation(directory, "alice")
    assert current.keypair.seed() == SEED
    assert keyfile.load(directory, "alice").keypair.seed() == SEED, (
        "the old key serves until the ledger has the new one"
    )
    done = keyfile.finish_rotation(directory, "alice")
    assert done.keypair.seed() == fresh.keypair.seed() == keyfile.load(directory, "alice").keypair.seed()
    assert done.note == "laptop"
    assert keyfile.names(directory) == ["alice"]
    files = sorted(os.listdir(directory))
    assert len(files) == 2 and files[1].startswith("alice.retired-")
    assert SEED.hex() in Path(directory, files[1]).read_text(), "the retired key is kept"
    assert {mode(os.path.join(directory, name)) for name in files} == {0o600}


def test_a_crash_before_the_ledger_answered(directory: str) -> None:
    """Begun twice, the same new key is meant both times: the ledger may have taken it already."""
    keyfile.import_seed(directory, "alice", SEED)
    _, first = keyfile.begin_rotation(directory, "alice")
    current, second = keyfile.begin_rotation(directory, "alice")
    assert first.keypair.seed() == second.keypair.seed()
    assert current.keypair.seed() == SEED


def test_a_crash_after_the_old_key_was_put_aside(directory: str) -> None:
    made = keyfile.import_seed(directory, "alice", SEED)
    _, fresh = keyfile.begin_rotation(directory, "alice")
    os.link(made.path, os.path.join(directory, "alice.retired-1"))  # where finish_rotation was interrupted
    assert keyfile.load(directory, "alice").keypair.seed() == SEED
    assert keyfile.finish_rotation(directory, "alice").keypair.seed() == fresh.keypair.seed()
    assert keyfile.load(directory, "alice").keypair.seed() == fresh.keypair.seed()


def test_finishing_twice_does_no_harm(directory: str) -> None:
    keyfile.import_seed(directory, "alice", SEED)
    keyfile.begin_rotation(directory, "alice")
    done = keyfile.finish_rotation(directory, "alice")
    with pytest.raises(NetError) as caught:
        keyfile.finish_rotation(directory, "alice")
    assert caught.value.kind == "identity-not-found"
    assert keyfile.load(directory, "alice").keypair.seed() == done.keypair.seed()


def test_a_rotation_the_cluster_refused_is_abandoned(directory: str) -> None:
    keyfile.import_seed(directory, "alice", SEED)
    _, first = keyfile.begin_rotation(directory, "alice")
    keyfile.abandon_rotation(directory, "alice")
    keyfile.abandon_rotation(directory, "alice")
    assert os.listdir(directory) == ["alice.key"]
    _, second = keyfile.begin_rotation(directory, "alice")
    assert first.keypair.seed() != second.keypair.seed()


def test_the_next_key_passes_the_same_gates(directory: str) -> None:
    keyfile.import_seed(directory, "alice", SEED)
    _, fresh = keyfile.begin_rotation(directory, "alice")
    os.chmod(fresh.path, 0o644)
    for step in (keyfile.begin_rotation, keyfile.finish_rotation):
        with pytest.raises(NetError) as caught:
            step(directory, "alice")
        assert caught.value.kind == "permissive-mode"
    assert keyfile.load(directory, "alice").keypair.seed() == SEED

"""Finding nodes on this machine and holding a cluster's name to its id, with real sockets and files."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from net_sdk import discovery
from substrate.wire.errors import NetError
from tests.control.sample import SampleApi, Serving
from tests.harness import REPO


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="net", dir="/tmp"))
    for name, directory in (("NET_RUNTIME_DIR", "r"), ("NET_CONFIG_HOME", "c"), ("NET_STATE_HOME", "s")):
        monkeypatch.setenv(name, str(root / directory))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def running(home: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, home: Path, name: str, *, cluster: str = "default", cluster_id: str = "c1" * 16) -> Serving:
    api = SampleApi(name)
    api.cluster, api.cluster_id, api.node_id = cluster, cluster_id, str(ord(name[0]))
    return stack.enter_context(Serving(api=api, path=home / "r" / cluster / f"{name}.sock"))


def dead(home: Path, name: str) -> None:
    (home / "r" / "default").mkdir(parents=True, exist_ok=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(home / "r" / "default" / f"{name}.sock"))


def refused(kind: str, *args: object, **kwargs: object) -> NetError:
    with pytest.raises(NetError) as caught:
        discovery.attach(*args, **kwargs)  # type: ignore[arg-type]
    assert caught.value.kind == kind
    return caught.value


def test_no_node_at_all(home: Path) -> None:
    assert discovery.sockets("default") == []
    assert "net node start" in str(refused("not-connected").hint)
    assert refused("node-not-found", via="a").details == {"node": "a", "known": []}
    refused("not-connected", socket=str(home / "x.sock"))
    assert not (home / "c").exists()


def test_sockets_are_listed_by_name_and_only_they(home: Path, running: ExitStack) -> None:
    for name in ("b", "a.peer", "a"):
        dead(home, name)
    (home / "r" / "default" / "b.sock.lock").touch()
    assert discovery.sockets("default") == [(name, str(home / f"r/default/{name}.sock")) for name in ("a", "b")]


def test_the_first_live_node_in_name_order(home: Path, running: ExitStack) -> None:
    dead(home, "a")
    serve(running, home, "c")
    serve(running, home, "b")
    with discovery.attach() as client:
        assert client.get("/v1/status")["node_name"] == "b"
        assert client.cluster_id == "c1" * 16


def test_a_client_goes_on_with_another_node(home: Path, running: ExitStack) -> None:
    first = serve(running, home, "a")
    serve(running, home, "c")
    dead(home, "b")
    with discovery.attach() as client:
        first.stop()
        assert client.get("/v1/status")["node_name"] == "c"
    with discovery.attach(via="c") as pinned:
        running.close()
        with pytest.raises(NetError) as caught:
            pinned.get("/v1/status")
        assert caught.value.kind == "not-connected"


def test_via_takes_a_name_its_beginning_or_an_id(home: Path, running: ExitStack) -> None:
    for name in ("web", "west", "a"):
        serve(running, home, name)
    dead(home, "dead")
    for via, name in (("web", "web"), ("wes", "west"), (str(ord("a")), "a"), (hex(ord("a")), "a")):
        with discovery.attach(via=via) as client:
            assert client.get("/v1/status")["node_name"] == name
    assert refused("ambiguous-name", via="we").details == {"matches": ["web", "west"]}
    assert refused("node-not-found", via="zz").details["known"] == ["a", "dead", "web", "west"]
    refused("node-not-found", via="12345")
    refused("not-connected", via="dead")


def test_an_explicit_socket_brings_its_own_cluster(home: Path, running: ExitStack) -> None:
    serving = serve(running, home, "a", cluster="other", cluster_id="d2" * 16)
    with discovery.attach(socket=serving.path) as client:
        assert client.cluster_id == "d2" * 16
    assert discovery.pinned("other") == "d2" * 16
    assert discovery.pinned("default") is None


def test_a_cluster_is_pinned_at_first_contact_and_held_to_it(home: Path, running: ExitStack) -> None:
    serving = serve(running, home, "a")
    discovery.attach().close()
    path = Path(discovery.known_clusters_path())
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    before = path.stat().st_mtime_ns
    discovery.attach().close()
    assert path.stat().st_mtime_ns == before  # a known cluster costs no write
    serving.api.cluster_id = "e3" * 16
    error = refused("cluster-changed")
    assert str(path) in str(error.hint)
    assert (error.details["cluster_id"], error.details["known_as"]) == ("e3" * 16, "c1" * 16)
    refused("cluster-changed", via="a")
    refused("cluster-changed", socket=serving.path)
    discovery.forget("default")
    discovery.attach().close()
    assert discovery.pinned("default") == "e3" * 16


def test_a_node_of_another_cluster_in_the_directory_is_refused(home: Path, running: ExitStack) -> None:
    serving = serve(running, home, "a")
    serving.api.cluster = "other"
    refused("cluster-changed")
    assert discovery.pinned("other") is None


def test_a_node_before_genesis_pins_nothing(home: Path, running: ExitStack) -> None:
    serving = serve(running, home, "a")
    serving.api.cluster_id = None
    with discovery.attach() as client:
        assert client.cluster_id is None
    assert not Path(discovery.known_clusters_path()).exists()


@pytest.mark.parametrize("content", [b"default\n", b"default c1c1\n", b"\xff\xfe"])
def test_a_damaged_file_is_refused_and_left_alone(home: Path, running: ExitStack, content: bytes) -> None:
    serve(running, home, "a")
    (home / "c").mkdir(mode=0o700)
    (home / "c" / "known_clusters").write_bytes(content)
    assert "known_clusters" in str(refused("invalid-config").hint)
    assert (home / "c" / "known_clusters").read_bytes() == content


def test_pins_made_at_the_same_time_all_stay(home: Path) -> None:
    code = "import sys; from net_sdk.discovery import pin; pin(sys.argv[1], sys.argv[2] * 16)"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    started = [
        subprocess.Popen([sys.executable, "-c", code, f"cluster-{n}", f"{n:02x}"], env=environment) for n in range(8)
    ]
    assert [process.wait(30) for process in started] == [0] * 8
    assert {discovery.pinned(f"cluster-{n}") for n in range(8)} == {f"{n:02x}" * 16 for n in range(8)}


def test_the_race_for_one_name_has_one_winner(home: Path) -> None:
    code = (
        "import sys; from net_sdk.discovery import pin; from substrate.wire.errors import NetError\n"
        "try: pin('one', sys.argv[1] * 16)\nexcept NetError as error: sys.exit(error.exit_code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    started = [subprocess.Popen([sys.executable, "-c", code, f"{n:02x}"], env=environment) for n in range(6)]
    assert sorted(process.wait(30) for process in started) == [0, 5, 5, 5, 5, 5]

"""Real measurements, checked against the kernel's own files."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from substrate.mesh.load import Load, Reading
from substrate.mesh.probes import CpuMeter, Probes
from substrate.wire.times import now_ms
from tests.mesh.helpers import until


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_sample_agrees_with_the_kernel(tmp_path: Path) -> None:
    before = now_ms()
    load = Probes(str(tmp_path)).sample()
    usage = shutil.disk_usage(tmp_path)
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert load.memory_total_bytes.value == int(meminfo["MemTotal"].split()[0]) * 1024
    assert load.memory_used_bytes.value is not None
    assert 0 < load.memory_used_bytes.value < load.memory_total_bytes.value
    assert load.disk_total_bytes.value == usage.total
    assert load.disk_used_bytes.value == pytest.approx(usage.used, rel=0.05)
    assert load.load1.value == pytest.approx(os.getloadavg()[0], abs=1.0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert load.rss_bytes.value == pytest.approx(resident, rel=0.1)
    for field in Load.__struct_fields__:
        reading = getattr(load, field)
        assert before - 5 <= reading.at_ms <= now_ms()


def test_first_cpu_sample_is_unknown_and_the_next_one_measured() -> None:
    meter = CpuMeter()
    first = meter.read()
    assert first.value is None
    assert first.error
    assert meter.read() is first, "too short a time says nothing new"
    burn(0.5)
    second = meter.read()
    assert second.error is None
    assert second.value is not None
    # One processor was kept busy all the time: at least about its share.
    assert 0.5 * 100 / (os.cpu_count() or 1) <= second.value <= 100


def test_what_cannot_be_measured_is_none_with_the_reason(tmp_path: Path) -> None:
    load = Probes(str(tmp_path / "missing")).sample()
    for reading in (load.disk_used_bytes, load.disk_total_bytes):
        assert reading.value is None
        assert reading.error is not None
        assert "FileNotFoundError" in reading.error
    assert load.memory_total_bytes.value is not None


def test_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    import subprocess

    import psutil

    child = subprocess.Popen(["/bin/true"])
    probes = Probes(str(tmp_path))
    probes._process = psutil.Process(child.pid)
    child.wait()
    reading = probes.sample().rss_bytes
    assert reading.value is None
    assert reading.error is not None
    assert "NoSuchProcess" in reading.error


def test_loop_keeps_sampling(tmp_path: Path) -> None:
    async def main() -> None:
        probes = Probes(str(tmp_path))
        assert probes.latest is None
        task = asyncio.create_task(probes.run(0.05))
        await until(lambda: probes.latest is not None and probes.latest.cpu_percent.value is not None, "a full sample")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_readings_survive_json_and_know_their_age(tmp_path: Path) -> None:
    load = Probes(str(tmp_path)).sample()
    assert msgspec.json.decode(msgspec.json.encode(load), type=Load) == load
    assert Reading(1000, 1).age_ms(1500) == 500
    assert Reading(1000, 1).age_ms(900) == 0, "the clock was set back"


def test_sampling_is_cheap(tmp_path: Path) -> None:
    probes = Probes(str(tmp_path))
    probes.sample()
    start = time.process_time()
    for _ in range(20):
        probes.sample()
    assert (time.process_time() - start) / 20 < 0.02, "every 2 s: below 1 % of a processor"

"""Processor time is found for each thread of a server, and for each kind of other process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.cpu_time import CpuTimes

BUSY = """
import threading, time
from benchmarks.named_server import name_thread
threading.setprofile(name_thread)
def spin():
    until = time.monotonic() + 60
    while time.monotonic() < until: pass
threading.Thread(target=spin, name="encode session", daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no processor time of threads in /proc")
def test_the_time_of_a_servers_busy_thread_is_found_under_the_threads_name():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            before = CpuTimes.now(process.pid)
            time.sleep(0.3)
            cores = CpuTimes.now(process.pid).cores_since(before)
        finally:
            process.kill()
    assert cores["server: encode"] > 0 and cores["server: encode"] > cores["server: event loop"]
    assert {"benchmark", "other processes"} <= cores.keys(), "the process that measures is a part of the load"


def test_shares_are_of_the_time_between_two_readings_with_the_busiest_part_first():
    before = CpuTimes(10.0, Counter({"a": 1.0, "b": 5.0, "ended": 3.0}))
    cores = CpuTimes(12.0, Counter({"a": 1.5, "b": 6.5, "new": 0.2})).cores_since(before)
    assert cores == {"b": 0.75, "a": 0.25, "new": 0.1}
    assert list(cores) == ["b", "a", "new"]

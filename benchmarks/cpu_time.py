"""Processor time of a server's threads and of Chromium's processes, as Linux counts it in /proc."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class CpuTimes:
    """Processor time that each part of this benchmark has used until now, in seconds; `at_s` on the monotonic clock."""

    at_s: float
    seconds: Counter[str]

    @staticmethod
    def now(server_pid: int) -> CpuTimes:
        """Of the threads of the server by their names, and of all other processes that this one started by their kind.
        `other processes`: of the rest of the machine. Empty where there is no /proc."""
        seconds: Counter[str] = Counter()
        if (PROC / "self" / "stat").exists():
            busy_s = _busy_s()
            for pid in _descendants(os.getpid()):
                for tid, name, used_s in _threads(pid):
                    seconds[_thread_kind(tid, pid, name) if pid == server_pid else _process_kind(pid)] += used_s
            seconds["other processes"] = busy_s - seconds.total()
        return CpuTimes(time.monotonic(), seconds)

    def cores_since(self, before: CpuTimes) -> dict[str, float]:
        """Cores in use between the two moments, on average, the busiest part first; threads that have ended count 0."""
        used_s = {name: seconds - before.seconds[name] for name, seconds in self.seconds.items()}
        return {
            name: max(0.0, seconds) / (self.at_s - before.at_s)
            for name, seconds in sorted(used_s.items(), key=lambda item: -item[1])
        }


def thread_names(pid: int) -> list[str]:
    return [name for _, name, _ in _threads(pid)]


def _busy_s() -> float:
    """Processor time that all processes and the kernel have used since the machine started; user, nice, system."""
    fields = (PROC / "stat").read_text().splitlines()[0].split()
    return sum(map(int, fields[1:4])) / os.sysconf("SC_CLK_TCK")


def _descendants(root: int) -> set[int]:
    """`root` and all processes that it or one of them started."""
    parents = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found


def _threads(pid: int) -> Iterator[tuple[int, str, float]]:
    """Id, name and processor time of each thread."""
    with contextlib.suppress(OSError):
        for folder in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                used_ns = int((folder / "schedstat").read_text().split()[0])
                yield int(folder.name), (folder / "comm").read_text().strip(), used_ns / 1e9


def _thread_kind(tid: int, pid: int, name: str) -> str:
    """`server: event loop`, `server: inference_0`; ids of sessions are cut off."""
    return "server: event loop" if tid == pid else f"server: {name.partition(' ')[0]}"


def _process_kind(pid: int) -> str:
    """`chromium: renderer`, or the program's name."""
    if pid == os.getpid():
        return "benchmark"
    arguments = (PROC / str(pid) / "cmdline").read_text().replace("\0", " ")
    if "chrom" in arguments.partition(" ")[0]:
        kind = re.search(r"--utility-sub-type=(\w+)", arguments) or re.search(r"--type=([\w-]+)", arguments)
        return f"chromium: {kind[1].partition('.')[0] if kind else 'browser'}"
    return Path(arguments.partition(" ")[0]).name

"""The memory of this process, as its operating system tells it; 0 where it does not."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STATUS = Path("/proc/self/statm")  # Linux


def resident_mb() -> float:
    """The resident memory, on Linux, after the interpreter and the C library have freed theirs."""
    gc.collect()
    if resource is None or not STATUS.exists():
        return 0.0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return int(STATUS.read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    """The most that was resident so far, on Linux and macOS."""
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
    return peak / (2**20 if sys.platform == "darwin" else 1024)

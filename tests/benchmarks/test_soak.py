"""Sessions that are opened, watched, spoken through and closed leave nothing behind in the server."""

from __future__ import annotations

import pytest

from benchmarks.soak import soak

pytestmark = pytest.mark.slow

# Allocators and the garbage collector hide a slow leak; `python -m benchmarks.soak` measures 200 sessions.
MAX_GROWTH_MB = 60.0


async def test_closed_sessions_leave_no_thread_and_no_file_handle(avatar_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    readings, _ = await soak(avatar_path, warm_up=8, cycles=24)
    assert readings[-1].threads <= readings[0].threads
    assert readings[-1].handles <= readings[0].handles
    assert readings[-1].memory_mb - readings[0].memory_mb < MAX_GROWTH_MB

"""Sessions that are opened, watched, spoken through and closed leave nothing behind in the server."""

from __future__ import annotations

import pytest

from benchmarks.soak import soak

pytestmark = pytest.mark.slow

# Allocators and the garbage collector hide a slow leak; `python -m benchmarks.soak` looks at 200 sessions.
MAX_GROWTH_MB = 60.0


async def test_closed_sessions_leave_no_thread_and_no_file_handle(avatar_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen, _ = await soak(avatar_path, warm_up=8, cycles=24)
    assert seen[-1].threads <= seen[0].threads
    assert seen[-1].handles <= seen[0].handles
    assert seen[-1].memory_mb - seen[0].memory_mb < MAX_GROWTH_MB

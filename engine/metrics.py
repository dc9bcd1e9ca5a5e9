"""Durations of stages for reports: counts, totals and recent percentiles, cheap enough for every frame."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

RECENT = 512


class StageTimes:
    """Durations by stage name; percentiles are over the last 512 of each. All `observers` get every duration.
    Thread-safe, as its observers must be."""

    def __init__(self) -> None:
        self.observers: list[Callable[[str, float], None]] = []
        self._recent: dict[str, deque[float]] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Observe the duration of the block, unless it raises."""
        began = time.perf_counter()
        yield
        self.observe(stage, time.perf_counter() - began)

    def observe(self, stage: str, seconds: float) -> None:
        self._recent.setdefault(stage, deque(maxlen=RECENT)).append(seconds)
        for observer in self.observers:
            observer(stage, seconds)

    @property
    def stages(self) -> list[str]:
        return sorted(self._recent.copy())  # the inference thread may add one meanwhile

    def percentile_ms(self, stage: str, percent: float) -> float:
        """A percentile of the recent durations; 0 for a stage that has not run."""
        recent = list(self._recent[stage].copy()) if stage in self._recent else []
        return float(np.percentile(recent, percent)) * 1000 if recent else 0.0

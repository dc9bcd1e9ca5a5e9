"""The progress of long work: what is done of each stage, the time until its end, and where the time went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

INTERVAL_S = 0.25  # between two reports of one stage
EARLY = 0.02  # of the work: before that nobody knows how long it takes

Progress = Callable[[str, int, int, float | None], None]
"""(stage, done, total, seconds that the whole still needs or None)."""


class Clock:
    """Reports progress, with the time left as the work so far suggests it.

    stages: in their order, with the usual share of the time that each takes.

    spent_s: seconds in each stage, and of the threads in `decoding`, `painting` and `encoding`.
    """

    def __init__(self, stages: Mapping[str, float], progress: Progress):
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._stages, self._progress = stages, progress
        self._began_s = time.monotonic()
        self._told_s = 0.0
        self._told: tuple[str, int] | None = None

    @contextmanager
    def spending(self, name: str) -> Iterator[None]:
        """Count the seconds of the block."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.spent_s[name] += time.perf_counter() - began_s

    def timed(self, items: Iterable[T], name: str) -> Iterator[T]:
        """`items`, with the seconds counted that each takes to be made."""
        iterator = iter(items)
        while True:
            with self.spending(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def tell(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` pieces of work of a stage are done."""
        now_s = time.monotonic()
        if done < total and self._told and self._told[0] == stage and now_s - self._told_s < INTERVAL_S:
            return
        self._told, self._told_s = (stage, done), now_s
        names = list(self._stages)
        before = sum(self._stages[name] for name in names[: names.index(stage)])
        share = before + self._stages[stage] * min(1.0, done / max(1, total))
        left_s = (now_s - self._began_s) * (1 - share) / share if share > EARLY else None
        self._progress(stage, done, total, left_s)

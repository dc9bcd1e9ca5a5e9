"""The progress of a dub: what is done of each stage, and the time that the whole still needs."""

from __future__ import annotations

import time
from collections.abc import Callable

STAGES = {"faces": 0.33, "people": 0.07, "references": 0.02, "pictures": 0.57, "file": 0.01}
"""The stages, and the usual share of the time that each takes."""
INTERVAL_S = 0.25  # between two reports of one stage
EARLY = 0.02  # of the work: before that nobody knows how long it takes

Progress = Callable[[str, int, int, float | None], None]
"""(stage of STAGES, done, total, seconds that the whole still needs or None)."""


class Clock:
    """Reports progress, with the time left as the work so far suggests it."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._began_s = time.monotonic()
        self._told_s = 0.0
        self._told: tuple[str, int] | None = None

    def tell(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` pieces of work of a stage are done. A resumed stage begins behind what it found."""
        now_s = time.monotonic()
        if done < total and self._told and self._told[0] == stage and now_s - self._told_s < INTERVAL_S:
            return
        self._told, self._told_s = (stage, done), now_s
        before = sum(share for name, share in STAGES.items() if list(STAGES).index(name) < list(STAGES).index(stage))
        share = before + STAGES[stage] * min(1.0, done / max(1, total))
        left_s = (now_s - self._began_s) * (1 - share) / share if share > EARLY else None
        self._progress(stage, done, total, left_s)

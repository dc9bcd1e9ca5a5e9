"""The loop through the base video: the base frame of every output frame, as a pure function of its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LoopMode = Literal["wrap", "ping_pong"]
LOOP_MODES: tuple[LoopMode, ...] = ("wrap", "ping_pong")


@dataclass(frozen=True)
class Loop:
    """Frames start <= i < stop of the base video, repeated forever.

    `wrap` jumps from the last frame to the first; enrolment has matched their poses. `ping_pong` reverses at both ends
    and does not show the end frames twice.
    """

    mode: LoopMode
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.mode not in LOOP_MODES or not 0 <= self.start < self.stop:
            raise ValueError(f"{self}: expected one of {', '.join(LOOP_MODES)} over 0 <= start < stop")

    @property
    def period(self) -> int:
        """Frames after which the loop repeats itself."""
        length = self.stop - self.start
        return length if self.mode == "wrap" else max(1, 2 * (length - 1))

    def frame_at(self, n: int) -> int:
        """The base frame for output frame `n` (any integer; 0 shows `start`)."""
        step = n % self.period
        if self.mode == "ping_pong" and step >= self.stop - self.start:
            step = self.period - step
        return self.start + step

"""Due times of a session's frames: 25 a second from its start, on the event loop's clock."""

from __future__ import annotations

import asyncio
import math

from engine.media import FPS

FRAME_S = 1 / FPS


class FrameClock:
    """Create it on the event loop; frames count from the last `start`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.began_s = 0.0  # loop time of frame 0

    def start(self) -> None:
        """Start frame 0 now."""
        self.began_s = self.now_s

    @property
    def now_s(self) -> float:
        """Loop time."""
        return self._loop.time()

    def due_s(self, frame: int) -> float:
        """Loop time at which a frame is complete and goes out."""
        return self.began_s + (frame + 1) * FRAME_S

    def late_s(self, frame: int) -> float:
        """Lateness of a frame that has not gone out; negative before it is due."""
        return self.now_s - self.due_s(frame)

    def skip(self, seconds: float) -> None:
        """Postpone all frames that have not gone out."""
        self.began_s += seconds

    def frames_too_soon(self, next_frame: int, cost_s: float) -> int:
        """The number of frames from `next_frame` on that are due too soon for work that takes `cost_s`."""
        return max(0, math.ceil((cost_s + self.late_s(next_frame)) / FRAME_S))

"""A session's client of the scheduler: its timeline's next job and deadline, at the machine's current speed."""

from __future__ import annotations

import asyncio
import math

from engine.live.batching import BatchTimes
from engine.live.frame_clock import FRAME_S, FrameClock
from engine.live.job import Job, Outcome
from engine.live.pipeline import AvatarPipeline, Work
from engine.live.quality import QualityController
from engine.live.timeline import Timeline

COST_MARGIN = 1.2  # a batch may take this many times as long as recent ones


class SessionClient:
    """Takes jobs from `timeline` and returns their outcomes to it; has no work once `closed` is set.

    lead_frames: limit of the frames between the arrival of speech and its first picture.  quality: of its pictures.
    failure: the exception that its work raised, which sets `closed`.
    """

    def __init__(
        self,
        pipeline: AvatarPipeline,
        timeline: Timeline,
        clock: FrameClock,
        costs: BatchTimes,
        lead_frames: int,
        closed: asyncio.Event,
        quality: QualityController,
    ):
        self._pipeline, self._timeline, self._clock, self._costs = pipeline, timeline, clock, costs
        self._lead_frames = lead_frames
        self._closed = closed
        self._first_paint = 0
        self._quality = quality
        self.failure: Exception | None = None

    @property
    def _lead(self) -> int:
        """Frames between the arrival of speech and its first picture."""
        cost_s = COST_MARGIN * (self._costs.recent_s("lips") + self._picture_s)
        return 1 + min(self._lead_frames, math.ceil(cost_s / FRAME_S))

    @property
    def _picture_s(self) -> float:
        return self._costs.recent_s(self._quality.pace.level)

    def due(self) -> tuple[str, float] | None:
        if self._closed.is_set():
            return None
        frame = self._timeline.next_frame
        cost_s = COST_MARGIN * self._picture_s
        self._first_paint = frame + self._clock.frames_too_soon(frame, cost_s)
        due = self._timeline.peek(self._first_paint, self._lead, self._quality.pace)
        return None if due is None else (due[0], self._clock.due_s(due[1]))

    def begin(self) -> Work[Job]:
        job = self._timeline.take(self._first_paint, self._lead, self._quality.pace)
        assert job is not None, "`due` named it"
        return Work(self._pipeline, job)

    def finish(self, work: Work[Job], outcome: Outcome) -> None:
        self._timeline.finish(work.job, outcome, self._lead)

    def fail(self, error: Exception) -> None:
        self.failure = error
        self._closed.set()

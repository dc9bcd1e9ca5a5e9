"""What the engine's tests share: a stand-in for the networks that costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.avatar.loop import Loop
from engine.config import Level, SessionConfig
from engine.live.job import Job, Lips, LipsJob, Outcome, PaintJob
from engine.live.segment import SpeechSegment
from engine.live.timeline import Timeline
from engine.models.geometry import GeometryState
from engine.models.speech import FRAME_SAMPLES, SpeechConfig, cut, init_state

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside this file


class Puppet:
    """What sessions and timelines need of an `AvatarPipeline`, without networks and videos: lips [1, 3] are loudness, a
    picture is (base, lips, serial).

    watch: called with every job and its outcome.
    """

    config = SpeechConfig()

    def __init__(
        self, *, lips_s: float = 0.0, paint_s: float = 0.0, watch: Callable[[Job, Outcome], object] = lambda *_: None
    ) -> None:
        self.avatar = SimpleNamespace(name="puppet", loop=Loop("wrap", 0, 50))
        self.rest = torch.zeros(1, 3)
        self.first = np.zeros((1, 1, 3), np.float32)
        self.lips_s, self.paint_s = lips_s, paint_s
        self.idle_s = self.laid_s = 0.0  # laid: a picture after the first one of a run
        self.watch = watch
        self.pictures = 0
        self.opening: float | None = None  # lips that do not depend on the sound
        self.level: Level = "best"
        self.failure: Exception | None = None
        self.clock: Any = None  # of a virtual loop

    def new_segment(self) -> SpeechSegment:
        empty = torch.zeros(1, 1, 1, 1)
        return SpeechSegment(
            init_state(self.config), GeometryState(empty, empty), self.config.step_frames, self.config.lookahead_frames
        )

    def new_timeline(self, config: SessionConfig, idle: Callable[[int], np.ndarray | None] | None = None) -> Timeline:
        return Timeline(config, self.avatar.loop, self.rest, self.new_segment, self.first, idle or self._idle)

    def perform(self, job: Job) -> Outcome:
        outcome = self._outcome(job)
        self.watch(job, outcome)
        return outcome

    def _outcome(self, job: Job) -> Outcome:
        if isinstance(job, LipsJob):
            return self._lips(job)
        if isinstance(job, PaintJob):
            return self._pictures(job)
        self._spend(self.idle_s)
        return [self._idle(job.base)]

    def _lips(self, job: LipsJob) -> Lips:
        self._spend(self.lips_s)
        windows, speech = cut(job.pcm, job.segment.speech, self.config)
        assert len(windows) == 1
        loud = np.sqrt((windows[0].astype(np.float64).reshape(-1, FRAME_SAMPLES) ** 2).mean(1))
        here = slice(self.config.left_frames, self.config.left_frames + self.config.step_frames)
        total = job.segment.geometry.keys + float(loud[here].sum())
        level = 10 * loud[here] + loud[-self.config.lookahead_frames :].sum() + 0.01 * float(total)
        level = level if self.opening is None else np.full_like(level, self.opening)
        lips = torch.from_numpy(level).float()[:, None, None].expand(-1, 1, 3)
        return Lips(speech, GeometryState(total, total), lips)

    def _pictures(self, job: PaintJob) -> list[np.ndarray]:
        self._spend(self.paint_s + self.laid_s * (len(job.frames) - 1))
        return [self._picture(frame.base, float(frame.lips[0, 0])) for frame in job.frames]

    def _idle(self, base: int) -> np.ndarray:
        return self._picture(base, -1.0)

    def _picture(self, base: int, level: float) -> np.ndarray:
        self.pictures += 1
        return np.array([[[base, level, self.pictures]]], np.float32)

    def _spend(self, seconds: float) -> None:
        if self.failure is not None:
            raise self.failure
        if self.clock is not None:
            self.clock.spend(seconds)


@pytest.fixture
def make_puppet() -> type[Puppet]:
    """`make_puppet(lips_s=..., paint_s=...)`; `opening_of(unit.image)` tells what it painted."""
    return Puppet


@pytest.fixture
def opening_of() -> Callable[[np.ndarray], float]:
    """How open the mouth of a puppet's picture is; 0 where it idles."""
    return lambda image: max(0.0, float(image[0, 0, 1]))


@pytest.fixture
def player(make_puppet):
    """A timeline with its puppet, driven frame by frame."""
    from player import Player

    return Player(make_puppet())

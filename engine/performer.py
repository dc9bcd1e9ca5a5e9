"""Does the jobs of a timeline for one avatar: speech to lips, lips to pictures. Stateless between jobs but for
caches, so all sessions of an avatar share it; it belongs to the inference thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar import Avatar
from engine.backend import Backend
from engine.config import SessionConfig
from engine.errors import AvatarFileError
from engine.line import Line
from engine.metrics import StageTimes
from engine.models.geometry import GeometryState
from engine.models.morphable import MorphableModel
from engine.models.speech import SpeechState, cut, init_state
from engine.painter import Painter
from engine.timeline import HearJob, Job, PaintJob, Timeline


@dataclass(frozen=True)
class Lips:
    """What a HearJob gives: lips [step, V_low, 3] and the states to go on from."""

    speech: SpeechState
    geometry: GeometryState
    lips: Tensor


Outcome = Lips | np.ndarray


class Performer:
    """The networks, set up for one avatar. `rest` [V_low, 3]: its closed, quiet lips; `first` [H, W, 3] uint8: what a
    session shows before its first picture. Raises AvatarFileError for a style that is not these networks'."""

    def __init__(self, backend: Backend, avatar: Avatar, model: MorphableModel):
        width = backend.start(1).keys.shape[-1]
        if len(avatar.style) != width:
            raise AvatarFileError(
                f"{avatar.path}: a style of {len(avatar.style)} numbers, expected {width}; "
                "enrol the speaker again with `precompute`"
            )
        self.avatar = avatar
        self._backend = backend
        self._painter = Painter.of(backend, avatar, model)
        self._idle = avatar.open_idle()
        alpha = avatar.alpha.mean(0)
        self._template = (model.mean + model.shape(alpha))[None]
        self._style = avatar.style[None]
        self.rest = model.vertices(alpha, avatar.rest_beta)[model.lower]
        self.first = self._idle.read(avatar.loop.start)
        self.times = StageTimes()

    def warm(self) -> None:
        """Run every network once, and the painter again: what compiles and allocates does it before anybody waits."""
        line = self.new_line()
        line.close(line.step_frames)
        self.perform(HearJob(line, line.hear(), 0))
        for _ in range(2):
            self.perform(PaintJob(self.avatar.loop.start, self.rest, 0, 0))
        self.times = StageTimes()  # compiling is no stage's time

    def new_line(self) -> Line:
        """A Line that has heard nothing yet."""
        config = self._backend.speech_config
        return Line(init_state(config), self._backend.start(1), config.step_frames, config.lookahead_frames)

    def new_timeline(self, config: SessionConfig) -> Timeline:
        return Timeline(config, self.avatar.loop, self.rest, self.new_line, self.first)

    def perform(self, job: Job) -> Outcome:
        """Do `job`: lips for a HearJob, a picture [H, W, 3] uint8 for a PaintJob."""
        return self._hear(job) if isinstance(job, HearJob) else self._paint(job)

    def _hear(self, job: HearJob) -> Lips:
        with self.times.measure("speech"):
            windows, speech = cut(job.pcm, job.line.speech, self._backend.speech_config)
            features = self._backend.hear(torch.from_numpy(windows))
        with self.times.measure("geometry"):
            lips, geometry = self._backend.move(features, self._style, self._template, job.line.geometry)
        return Lips(speech, geometry, lips[0])

    def _paint(self, job: PaintJob) -> np.ndarray:
        if job.lips is None:
            with self.times.measure("idle"):
                return self._idle.read(job.base)
        with self.times.measure("picture"):
            return self._painter.paint(job.base, job.lips)


def finish(timeline: Timeline, job: Job, outcome: Outcome, lead: int) -> None:
    """Give a job's outcome back to the timeline that it came from."""
    if isinstance(job, HearJob):
        assert isinstance(outcome, Lips)
        timeline.heard(job, outcome.speech, outcome.geometry, outcome.lips, lead)
    else:
        assert isinstance(outcome, np.ndarray)
        timeline.painted(job, outcome)

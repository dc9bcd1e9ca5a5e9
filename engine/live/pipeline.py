"""Does the jobs of timelines: speech to lips, lips to pictures, of one avatar or of several in one batch. Stateless
between jobs but for caches, so all sessions of an avatar share a AvatarPipeline; it belongs to the inference thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.config import SessionConfig
from engine.errors import AvatarFileError
from engine.live.batching import SIZES, BatchTimes, measure
from engine.live.segment import SpeechSegment
from engine.live.timeline import HearJob, Job, PaintJob, Timeline
from engine.metrics import StageTimes
from engine.models.geometry import GeometryState
from engine.models.morphable import MorphableModel
from engine.models.speech import SpeechState, cut, init_state
from engine.paint.painter import FittedVideo


@dataclass(frozen=True)
class Lips:
    """What a HearJob gives: lips [step, V_low, 3] and the states to go on from."""

    speech: SpeechState
    geometry: GeometryState
    lips: Tensor


Outcome = Lips | np.ndarray


J = TypeVar("J", bound=Job, covariant=True)


@dataclass(frozen=True)
class Work(Generic[J]):
    """A job, and who knows the avatar that it is for."""

    pipeline: AvatarPipeline
    job: J


def stage(job: Job) -> str:
    """Work of one stage can be done in one batch."""
    if isinstance(job, HearJob):
        return "hear"
    return "idle" if job.lips is None else "picture"


class AvatarPipeline:
    """The networks, set up for one avatar. `rest` [V_low, 3]: its closed, quiet lips; `first` [H, W, 3] uint8: what a
    session shows before its first picture. Raises AvatarFileError for a style that is not these networks'."""

    def __init__(self, backend: Backend, avatar: Avatar, model: MorphableModel):
        width = backend.initial_state(1).keys.shape[-1]
        if len(avatar.style) != width:
            raise AvatarFileError(
                f"{avatar.path}: a style of {len(avatar.style)} numbers, expected {width}; "
                "enrol the speaker again with `precompute`"
            )
        self.avatar = avatar
        self._backend = backend
        self._painter = backend.painter(FittedVideo.of(avatar), avatar.bank, model)
        self._idle = avatar.open_idle()
        alpha = avatar.alpha.mean(0)
        self._template = (model.mean + model.shape(alpha))[None]
        self._style = avatar.style[None]
        self.rest = model.vertices(alpha, avatar.rest_beta)[model.lower]
        self.first = self._idle.read(avatar.loop.start)
        self.times = StageTimes()

    def warm(self) -> BatchTimes:
        """Run every network in all batches that pay, and say what those take: what compiles and allocates does it
        before anybody waits."""
        segment, frames = self.new_segment(), map(self.avatar.loop.frame_at, itertools.count())
        segment.close(segment.step_frames)
        heard = HearJob(segment, segment.hear(), 0)
        costs = BatchTimes(
            {
                "hear": measure(lambda size: self.perform_all([Work(self, heard)] * size)),
                "picture": measure(
                    lambda size: self.perform_all([self._example(next(frames), self.rest) for _ in range(size)]),
                    SIZES if self._painter.gains_by_batches else SIZES[:1],
                ),
                "idle": measure(lambda size: self.perform_all([self._example(next(frames), None)]), SIZES[:1]),
            }
        )
        self.times = StageTimes()  # compiling is no stage's time
        return costs

    def _example(self, base: int, lips: Tensor | None) -> Work[PaintJob]:
        return Work(self, PaintJob(base, lips, 0, 0))

    def new_segment(self) -> SpeechSegment:
        """A segment that has heard nothing yet."""
        config = self._backend.speech_config
        return SpeechSegment(
            init_state(config), self._backend.initial_state(1), config.step_frames, config.lookahead_frames
        )

    def new_timeline(self, config: SessionConfig) -> Timeline:
        return Timeline(config, self.avatar.loop, self.rest, self.new_segment, self.first)

    def perform(self, job: Job) -> Outcome:
        """Do `job`: lips for a HearJob, a picture [H, W, 3] uint8 for a PaintJob."""
        return self.perform_all([Work(self, job)])[0]

    def perform_all(self, batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
        """Do a batch: work of one stage, this pipeline's and that of others with the same backend."""
        if isinstance(batch[0].job, HearJob):
            return self._hear(cast(Sequence[Work[HearJob]], batch))
        return self._paint(cast(Sequence[Work[PaintJob]], batch))

    def _hear(self, batch: Sequence[Work[HearJob]]) -> list[Lips]:
        segments = [work.job.segment for work in batch]
        with _shared(batch, "speech"):
            cuts = [cut(work.job.pcm, work.job.segment.speech, self._backend.speech_config) for work in batch]
            features = self._backend.encode_speech(torch.from_numpy(np.concatenate([window for window, _ in cuts])))
        with _shared(batch, "geometry"):
            lips, after = self._backend.step_geometry(
                features,
                torch.cat([work.pipeline._style for work in batch]),
                torch.cat([work.pipeline._template for work in batch]),
                GeometryState(
                    torch.cat([segment.geometry.keys for segment in segments]),
                    torch.cat([segment.geometry.values for segment in segments]),
                ),
            )
        states = zip(after.keys.split(1), after.values.split(1), strict=True)
        # Copies: a view would keep what belongs to all of the batch for as long as one of them speaks.
        geometry = [GeometryState(keys.clone(), values.clone()) for keys, values in states]
        return [Lips(speech, g, frames.clone()) for (_, speech), g, frames in zip(cuts, geometry, lips, strict=True)]

    def _paint(self, batch: Sequence[Work[PaintJob]]) -> list[np.ndarray]:
        with _shared(batch, stage(batch[0].job)):
            if batch[0].job.lips is None:
                return [work.pipeline._idle.read(work.job.base) for work in batch]
            painted = [(w.pipeline._painter, w.job.base, w.job.lips) for w in batch if w.job.lips is not None]
            return self._painter.paint_together(painted)


@contextmanager
def _shared(batch: Sequence[Work[Job]], stage: str) -> Iterator[None]:
    """The time that passes is shared evenly among the work of the batch."""
    began = time.perf_counter()
    yield
    seconds = (time.perf_counter() - began) / len(batch)
    for work in batch:
        work.pipeline.times.observe(stage, seconds)


def finish(timeline: Timeline, job: Job, outcome: Outcome, lead: int) -> None:
    """Give a job's outcome back to the timeline that it came from."""
    if isinstance(job, HearJob):
        assert isinstance(outcome, Lips)
        timeline.heard(job, outcome.speech, outcome.geometry, outcome.lips, lead)
    else:
        assert isinstance(outcome, np.ndarray)
        timeline.painted(job, outcome)

"""Runs the jobs of timelines: speech to lips, and lips to pictures, of one avatar or of several in one batch.

Between jobs a pipeline keeps only caches, so that all sessions of an avatar share one. Use it on one thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
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
from engine.live.job import Job, Lips, LipsJob, Outcome, PaintJob
from engine.live.segment import SpeechSegment
from engine.live.timeline import Timeline
from engine.media import SAMPLE_RATE_HZ, MediaUnit
from engine.metrics import StageTimes
from engine.models import state as states
from engine.models.morphable import MorphableModel
from engine.models.speech import cut, init_state
from engine.paint.painter import FittedVideo

OFFLINE_AHEAD_MS = 5_000  # far more than lips need of the sound after them

J = TypeVar("J", bound=Job, covariant=True)


@dataclass(frozen=True)
class Work(Generic[J]):
    """A job, and the pipeline of its avatar."""

    pipeline: AvatarPipeline
    job: J


class AvatarPipeline:
    """The networks, set up for one avatar. Raises AvatarFileError for a style that other networks made.

    rest: [V_low, 3], the closed, quiet lips.  first: [H, W, 3] uint8, shown before the first picture of a session.
    """

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
        """Run every network in batches of all sizes that pay, and return their times. Compiling and allocating happen
        here, before the first session."""
        segment, frames = self.new_segment(), map(self.avatar.loop.frame_at, itertools.count())
        segment.close(segment.step_frames)
        lips = LipsJob(segment, segment.begin_step(), 0)
        costs = BatchTimes(
            {
                "lips": measure(lambda size: self.perform_all([Work(self, lips)] * size)),
                "picture": measure(
                    lambda size: self.perform_all([self._example(next(frames), self.rest) for _ in range(size)]),
                    SIZES if self._painter.gains_by_batches else SIZES[:1],
                ),
                "idle": measure(lambda size: self.perform_all([self._example(next(frames), None)]), SIZES[:1]),
            }
        )
        self.times = StageTimes()  # without the time of compiling
        return costs

    def _example(self, base: int, lips: Tensor | None) -> Work[PaintJob]:
        return Work(self, PaintJob(base, lips, 0, 0))

    def new_segment(self) -> SpeechSegment:
        """A segment without sound."""
        config = self._backend.speech_config
        return SpeechSegment(
            init_state(config), self._backend.initial_state(1), config.step_frames, config.lookahead_frames
        )

    def new_timeline(self, config: SessionConfig) -> Timeline:
        return Timeline(config, self.avatar.loop, self.rest, self.new_segment, self.first)

    def speak(self, pcm: np.ndarray | Iterable[np.ndarray], config: SessionConfig | None = None) -> Iterator[MediaUnit]:
        """The units of a session that speaks pcm [N] int16 at 48 kHz from its first frame until the mouth has closed,
        as fast as the machine computes them. Of sound in blocks only OFFLINE_AHEAD_MS and a block are held."""
        timeline = self.new_timeline(config or SessionConfig())
        timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
        blocks: Iterator[np.ndarray] | None = iter([pcm] if isinstance(pcm, np.ndarray) else pcm)
        while True:
            while blocks is not None and timeline.buffered_ms < OFFLINE_AHEAD_MS:
                if (block := next(blocks, None)) is not None:
                    timeline.push_audio("speech", block.tobytes())
                else:
                    timeline.end_utterance("speech")
                    blocks = None
            if timeline.idle:
                return
            while (job := timeline.take(timeline.next_frame, lead=0)) is not None:
                timeline.finish(job, self.perform(job), lead=0)
            yield timeline.emit()

    def perform(self, job: Job) -> Outcome:
        """Run `job`: lips for a LipsJob, a picture [H, W, 3] uint8 for a PaintJob."""
        return self.perform_all([Work(self, job)])[0]

    def perform_all(self, batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
        """Run a batch: work of one stage, for this pipeline and others with the same backend."""
        if isinstance(batch[0].job, LipsJob):
            return self._compute_lips(cast(Sequence[Work[LipsJob]], batch))
        return self._paint(cast(Sequence[Work[PaintJob]], batch))

    def _compute_lips(self, batch: Sequence[Work[LipsJob]]) -> list[Lips]:
        with _shared(batch, "speech"):
            cuts = [cut(work.job.pcm, work.job.segment.speech, self._backend.speech_config) for work in batch]
            features = self._backend.encode_speech(torch.from_numpy(np.concatenate([window for window, _ in cuts])))
        with _shared(batch, "geometry"):
            lips, after = self._backend.step_geometry(
                features,
                torch.cat([work.pipeline._style for work in batch]),
                torch.cat([work.pipeline._template for work in batch]),
                states.batch([work.job.segment.geometry for work in batch]),
            )
        geometry = states.unbatch(after, len(batch))
        # Copies: a view would keep the lips of the whole batch in memory.
        return [Lips(speech, g, frames.clone()) for (_, speech), g, frames in zip(cuts, geometry, lips, strict=True)]

    def _paint(self, batch: Sequence[Work[PaintJob]]) -> list[np.ndarray]:
        with _shared(batch, batch[0].job.stage):
            if batch[0].job.lips is None:
                return [work.pipeline._idle.read(work.job.base) for work in batch]
            painted = [(w.pipeline._painter, w.job.base, w.job.lips) for w in batch if w.job.lips is not None]
            return self._painter.paint_together(painted)


@contextmanager
def _shared(batch: Sequence[Work[Job]], stage: str) -> Iterator[None]:
    """Record the duration of the block in the times of `stage`, divided evenly among the work of the batch."""
    began = time.perf_counter()
    yield
    seconds = (time.perf_counter() - began) / len(batch)
    for work in batch:
        work.pipeline.times.observe(stage, seconds)

"""Runs the jobs of timelines: speech to lips, and lips to pictures, of one avatar or of several in one batch.

Between jobs a pipeline keeps only caches, so that all sessions of an avatar share one. As many threads may use it at
once as its backend has workers.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.config import FINE_LEVELS, Level, SessionConfig
from engine.errors import AvatarFileError
from engine.live.batching import SIZES, BatchTimes, measure
from engine.live.job import Frame, IdleJob, Job, Lips, LipsJob, Outcome, PaintJob
from engine.live.quality import Pace
from engine.live.segment import SpeechSegment
from engine.live.timeline import Timeline
from engine.live.workers import inference_threads
from engine.media import SAMPLE_RATE_HZ, MediaUnit
from engine.metrics import StageTimes
from engine.models import state as states
from engine.models.morphable import MorphableModel
from engine.models.persona import LipSpace, PersonaMap
from engine.models.speech import cut, init_state
from engine.paint.painter import FittedVideo, PicturePainter

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
        self.level: Level = backend.levels[0]  # offline, where time does not matter
        self._painter = backend.painter(FittedVideo.of(avatar), avatar.bank, model)
        self._idle = avatar.open_idle()
        alpha = avatar.alpha.mean(0)
        self._template = (model.mean + model.shape(alpha))[None]
        self._style = avatar.style[None]
        self.rest = model.vertices(alpha, avatar.rest_beta)[model.lower]
        template = self._template[0, model.lower]
        self._persona = PersonaMap(LipSpace(model), avatar.persona, template, self.rest)
        self.first = self._idle.read(avatar.loop.start)
        self.times = StageTimes()

    def warm(self) -> BatchTimes:
        """Run every network in batches of all sizes that pay, and return their times while all workers run one.
        Compiling and allocating happen here, before the first session."""
        segment, bases = self.new_segment(), map(self.avatar.loop.frame_at, itertools.count())
        segment.close(segment.step_frames)
        lips = LipsJob(segment, segment.begin_step(), 0)

        def picture(size: int, level: Level) -> object:
            runs = [[Frame(next(bases), self.rest, 0) for _ in range(Pace(level).run_frames)] for _ in range(size)]
            return self.perform_all([Work(self, PaintJob(tuple(frames), level)) for frames in runs])

        def idle(size: int) -> object:
            return self.perform(IdleJob(next(bases)))

        workers = self._backend.workers
        with inference_threads(workers) as threads:

            def busy_s(run: Callable[[int], object], sizes: Sequence[int]) -> dict[int, float]:
                return measure(lambda size: list(threads.map(run, [size] * workers)), sizes)

            sizes = SIZES if self._painter.gains_by_batches else SIZES[:1]
            costs = BatchTimes(
                {
                    "lips": busy_s(lambda size: self.perform_all([Work(self, lips)] * size), SIZES),
                    "idle": busy_s(idle, SIZES[:1]),
                    **{level: busy_s(partial(picture, level=level), sizes) for level in self._backend.levels},
                }
            )
        self.times = StageTimes()  # without the time of compiling
        return costs

    def paint_job(self, base: int, lips: Tensor) -> PaintJob:
        """The picture of base frame `base` with lips [V_low, 3], outside any timeline."""
        return PaintJob((Frame(base, lips, 0),), self.level)

    def new_segment(self, expressiveness: float = 1.0) -> SpeechSegment:
        """A segment without sound."""
        config = self._backend.speech_config
        return SpeechSegment(
            init_state(config),
            self._backend.initial_state(1),
            config.step_frames,
            config.lookahead_frames,
            expressiveness=expressiveness,
        )

    def new_timeline(self, config: SessionConfig, idle: Callable[[int], np.ndarray | None] | None = None) -> Timeline:
        """idle: the idle pictures; by default each is decoded when it is shown."""
        new_segment = partial(self.new_segment, config.expressiveness)
        return Timeline(config, self.avatar.loop, self.rest, new_segment, self.first, idle or self._idle.read)

    def speak(self, pcm: np.ndarray | Iterable[np.ndarray], config: SessionConfig | None = None) -> Iterator[MediaUnit]:
        """The units of a session that speaks pcm [N] int16 at 48 kHz from its first frame until the mouth has closed,
        as fast as the machine computes them. Of sound in blocks only OFFLINE_AHEAD_MS and a block are held."""
        timeline = self.new_timeline(config or SessionConfig())
        timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
        blocks: Iterator[np.ndarray] | None = iter([pcm] if isinstance(pcm, np.ndarray) else pcm)
        running: deque[tuple[Job, Future[Outcome]]] = deque()
        workers, pace = self._backend.workers, Pace(self.level)
        with inference_threads(workers) as threads:
            while True:
                while blocks is not None and timeline.buffered_ms < OFFLINE_AHEAD_MS:
                    if (block := next(blocks, None)) is not None:
                        timeline.push_audio("speech", block.tobytes())
                    else:
                        timeline.end_utterance("speech")
                        blocks = None
                if timeline.idle:
                    return
                while len(running) < workers and (job := timeline.take(timeline.next_frame, 0, pace)):
                    running.append((job, threads.submit(self.perform, job)))
                if len(running) < workers and timeline.ready:
                    yield timeline.emit()
                else:
                    job, outcome = running.popleft()
                    timeline.finish(job, outcome.result(), lead=0)

    def perform(self, job: Job) -> Outcome:
        """Run `job`: lips for a LipsJob, pictures [H, W, 3] uint8 for the others."""
        return self.perform_all([Work(self, job)])[0]

    def perform_all(self, batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
        """Run a batch: work of one stage, for this pipeline and others with the same backend."""
        if isinstance(batch[0].job, LipsJob):
            return self._compute_lips(cast(Sequence[Work[LipsJob]], batch))
        if isinstance(batch[0].job, IdleJob):
            return [work.pipeline._decode(work.job) for work in cast(Sequence[Work[IdleJob]], batch)]
        return self._paint(cast(Sequence[Work[PaintJob]], batch))

    def _decode(self, job: IdleJob) -> list[np.ndarray]:
        with self.times.measure("idle"):
            return [self._idle.read(job.base)]

    def _compute_lips(self, batch: Sequence[Work[LipsJob]]) -> list[Lips]:
        pipelines = [work.pipeline for work in batch]
        with _shared(pipelines, "speech"):
            cuts = [cut(work.job.pcm, work.job.segment.speech, self._backend.speech_config) for work in batch]
            features = self._backend.encode_speech(torch.from_numpy(np.concatenate([window for window, _ in cuts])))
        with _shared(pipelines, "geometry"):
            lips, after = self._backend.step_geometry(
                features,
                torch.cat([pipeline._style for pipeline in pipelines]),
                torch.cat([pipeline._template for pipeline in pipelines]),
                states.batch([work.job.segment.geometry for work in batch]),
            )
            own = [
                # A copy: a view would keep the lips of the whole batch in memory.
                work.pipeline._persona(frames.clone(), work.job.segment.expressiveness)
                for work, frames in zip(batch, lips, strict=True)
            ]
        geometry = states.unbatch(after, len(batch))
        return [Lips(speech, g, frames) for (_, speech), g, frames in zip(cuts, geometry, own, strict=True)]

    def _paint(self, batch: Sequence[Work[PaintJob]]) -> list[list[np.ndarray]]:
        pipelines = [work.pipeline for work in batch for _ in work.job.frames]
        with _shared(pipelines, "picture"):
            return self._painter.paint_together([work.pipeline._run(work.job) for work in batch])

    def _run(self, job: PaintJob) -> tuple[PicturePainter, list[tuple[int, Tensor]], bool]:
        return self._painter, [(frame.base, frame.lips) for frame in job.frames], job.level in FINE_LEVELS


@contextmanager
def _shared(pipelines: Sequence[AvatarPipeline], stage: str) -> Iterator[None]:
    """Record the duration of the block in the times of `stage`, divided evenly among its pieces of work, which are of
    `pipelines`."""
    began = time.perf_counter()
    yield
    seconds = (time.perf_counter() - began) / len(pipelines)
    for pipeline in pipelines:
        pipeline.times.observe(stage, seconds)

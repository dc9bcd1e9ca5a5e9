"""Engine: the loaded avatars, the networks and the inference threads; admits, opens and supervises sessions."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.select import describe, first_line
from engine.config import MAX_LOAD, SessionConfig
from engine.errors import CapacityError, DeviceError, UnknownAvatarError
from engine.live.batching import BatchTimes
from engine.live.idle import IdlePictures
from engine.live.job import Job, Outcome
from engine.live.pipeline import AvatarPipeline, Work
from engine.live.quality import Pace, QualityController
from engine.live.scheduler import Scheduler
from engine.live.session import Session, SessionCounters
from engine.live.trace import Tracer
from engine.media import FPS
from engine.metrics import StageTimes
from engine.models.weights import load_face_model

log = logging.getLogger(__name__)

IDLE_HZ = {"idle": FPS}
Perform = Callable[[Sequence[Work[Job]]], Sequence[Outcome]]


class Engine:
    """Use it as `async with Engine({"anna": "anna.avatar"}) as engine`. Its sessions end when the block is left.

    avatars: paths of avatar files by name.  backend: the CPU by default; `backend_for("auto")` of
    `engine.backends.select` takes a GPU where there is one.  max_load: the share of the device's time that sessions may
    need together, all talking ones at once, by the `costs` that are measured at the start.  tracer: gets the work of
    the inference threads.

    Entering it opens the avatars and runs every network. Raises AvatarFileError, WeightsError, DeviceError. A device
    that is lost later sets `failed`, and `failure` has the reason: no session can speak, and none is opened.
    """

    def __init__(
        self,
        avatars: Mapping[str, str | Path],
        config: SessionConfig | None = None,
        max_sessions: int = 4,
        backend: Backend | None = None,
        max_load: float = MAX_LOAD,
        tracer: Tracer | None = None,
    ):
        self._paths = {name: Path(path) for name, path in avatars.items()}
        self._config = config or SessionConfig()
        self._max_sessions = max_sessions
        self._backend = backend
        self._max_load = max_load
        self._perform: Perform = _perform if tracer is None else partial(_traced, tracer)
        self.costs = BatchTimes()
        self._pipelines: dict[str, AvatarPipeline] = {}
        self._tasks = asyncio.TaskGroup()
        self.sessions: dict[str, Session] = {}
        self.failure = ""  # why the device is lost
        self.failed = asyncio.Event()
        self.latencies = StageTimes()
        self._past = SessionCounters()  # of closed sessions

    @property
    def backend(self) -> Backend:
        """The networks on their device, once the engine is entered."""
        assert self._backend is not None
        return self._backend

    @property
    def avatars(self) -> dict[str, Avatar]:
        return {name: pipeline.avatar for name, pipeline in self._pipelines.items()}

    @property
    def pipelines(self) -> dict[str, AvatarPipeline]:
        """By avatar name; their `times` hold the durations of the stages."""
        return self._pipelines

    @property
    def counters(self) -> SessionCounters:
        """The counters of all sessions since the start, added up."""
        return sum((session.counters for session in self.sessions.values()), self._past)

    async def __aenter__(self) -> Engine:
        backend, self._model = self._backend or CpuBackend.embedded(), load_face_model()
        try:
            self._open_avatars(backend)
        except RuntimeError as error:  # of torch: memory, drivers, libraries
            reason = f"{describe(backend.device)} does not paint these avatars ({first_line(error)})"
            if backend.spare is None:
                raise DeviceError(f"{reason}; choose `--device auto` or `--device cpu`") from error
            backend = backend.spare(reason)
            self._open_avatars(backend)
        self.quality = QualityController(backend.levels, self._present_load)
        log.info("quality %s: %s", self.quality.pace, self.quality.reason)
        self._scheduler = Scheduler(self._run, self.costs, backend.workers)
        self._idle = {name: IdlePictures(pipeline, self._scheduler) for name, pipeline in self._pipelines.items()}
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        return self

    def _open_avatars(self, backend: Backend) -> None:
        """Open the avatars on `backend`, which becomes the engine's, and run every network."""
        self._backend, self.costs = backend, BatchTimes()
        for name, path in self._paths.items():
            pipeline = self._open(path)
            self.costs = self.costs.slower(pipeline.warm())
            self._pipelines[name] = pipeline
            log.info("avatar %s from %s", name, path)

    def _run(self, batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
        """On an inference thread."""
        try:
            return self._perform(batch)
        except Exception:
            if reason := self.backend.lost():
                self._loop.call_soon_threadsafe(self._fail, reason)
            raise

    def _fail(self, reason: str) -> None:
        if not self.failure:
            log.error("the device is lost: %s", reason)
        self.failure = reason
        self.failed.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in list(self.sessions.values()):
            await session.close()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._scheduler.close()

    def _open(self, path: Path) -> AvatarPipeline:
        return AvatarPipeline(self.backend, Avatar.open(path, quality=self.backend.quality), self._model)

    async def load_avatar(self, name: str, path: Path) -> AvatarPipeline:
        """Add an avatar while sessions run. It is not measured, which would delay their pictures: the costs stay those
        of the avatars that the engine was entered with. Raises AvatarFileError."""
        pipeline = await asyncio.to_thread(self._open, path)
        self._pipelines[name], self._idle[name] = pipeline, IdlePictures(pipeline, self._scheduler)
        log.info("avatar %s from %s", name, path)
        return pipeline

    def unload_avatar(self, name: str) -> None:
        """Open no more sessions of an avatar. Its memory is freed with its last session. Raises KeyError."""
        del self._pipelines[name], self._idle[name]
        log.info("avatar %s unloaded", name)

    def load(self, more: int = 0) -> float:
        """The share of the device's time that all sessions and `more` talking ones need at the cheapest level that may
        be chosen; above 1, frames are late. The idle pictures of an avatar cost the same for any number of sessions."""
        needed = min(self.costs.load(self._talking + more, rates_hz) for rates_hz in self._talking_hz)
        return (needed + self._idle_load) / self.backend.workers

    @property
    def _talking(self) -> int:
        return sum(session.talks for session in self.sessions.values())

    @property
    def _talking_hz(self) -> list[dict[str, float]]:
        """The jobs a second of a talking session at each level."""
        return [self._rates_hz(Pace(level)) for level in self.backend.levels]

    @property
    def _idle_load(self) -> float:
        avatars = {id(session.avatar) for session in self.sessions.values()}
        return self.costs.load(len(avatars), IDLE_HZ)

    def _present_load(self, pace: Pace) -> float:
        speaking = sum(session.speaks for session in self.sessions.values())
        return self.costs.present_load(max(1, speaking), self._rates_hz(pace)) / self.backend.workers

    def _rates_hz(self, pace: Pace) -> dict[str, float]:
        return pace.rates_hz(self.backend.speech_config.step_frames)

    @property
    def room(self) -> int:
        """The number of further sessions that are admitted. The first one always is, however slow the machine; none
        where the device is lost."""
        if self.failure:
            return 0
        left = max(0, self._max_sessions - len(self.sessions))
        limit = self._max_load * self.backend.workers - self._idle_load
        fits = self.costs.most_sessions(self._talking_hz, limit) - self._talking
        return int(min(left, max(fits, 0 if self.sessions else 1)))

    def need_device(self) -> None:
        """Raises DeviceError where the device is lost."""
        if self.failure:
            raise DeviceError(f"{self.failure}; restart the server")

    def open_session(self, avatar: str, session_id: str | None = None) -> Session:
        """A new session of the avatar, already running. Its id is random by default. Raises UnknownAvatarError,
        CapacityError, DeviceError where the device is lost."""
        self.need_device()
        if avatar not in self._pipelines:
            raise UnknownAvatarError(f"no avatar {avatar!r}; this server has {', '.join(sorted(self._pipelines))}")
        live = len(self.sessions)
        if live >= self._max_sessions:
            raise CapacityError(f"{live} sessions are open, the limit is {self._max_sessions}; try later")
        if not self.room:
            raise CapacityError(
                f"{live} sessions are open and one more would need {self.load(1):.0%} of the device, "
                f"the limit is {self._max_load:.0%}; try later"
            )
        session = Session(
            session_id or secrets.token_hex(8),
            self._pipelines[avatar],
            self._scheduler,
            self._config,
            self.latencies,
            self.quality,
            self._idle[avatar],
        )
        self.sessions[session.id] = session
        self._tasks.create_task(self._supervise(session), name=f"session {session.id}")
        return session

    async def _supervise(self, session: Session) -> None:
        """Run the session; its failure is logged and ends it alone."""
        try:
            await session.run()
        except Exception:
            log.exception("session %s failed", session.id)
        finally:
            self.sessions.pop(session.id, None)
            self._past += session.counters


def _perform(batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
    return batch[0].pipeline.perform_all(batch)  # any pipeline of the batch runs it: they share the backend


def _traced(tracer: Tracer, batch: Sequence[Work[Job]]) -> Sequence[Outcome]:
    with tracer.span(batch[0].job.stage, frames=[frame for work in batch for frame in work.job.numbers]):
        return _perform(batch)

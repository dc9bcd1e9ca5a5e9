"""Host: the loaded avatars, the networks and the inference thread; opens and supervises sessions."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from types import TracebackType

from engine.avatar import Avatar
from engine.backend import Backend, TorchBackend
from engine.config import SessionConfig
from engine.errors import CapacityError, UnknownAvatarError
from engine.metrics import StageTimes
from engine.performer import Performer
from engine.scheduler import Scheduler
from engine.session import Session, SessionCounters
from engine.weights import load_face_model

log = logging.getLogger(__name__)


class Host:
    """Use as `async with Host(...) as host`. Sessions live in its TaskGroup and end with it."""

    def __init__(
        self,
        avatars: dict[str, Path],
        config: SessionConfig | None = None,
        max_sessions: int = 4,
        backend: Backend | None = None,
    ):
        self._paths = avatars
        self._config = config or SessionConfig()
        self._max_sessions = max_sessions
        self._backend = backend
        self._performers: dict[str, Performer] = {}
        self._tasks = asyncio.TaskGroup()
        self.sessions: dict[str, Session] = {}
        self.latencies = StageTimes()
        self._past = SessionCounters()  # of the sessions that are closed

    @property
    def avatars(self) -> dict[str, Avatar]:
        return {name: performer.avatar for name, performer in self._performers.items()}

    @property
    def performers(self) -> dict[str, Performer]:
        """By avatar name; their `times` say how long the stages take."""
        return self._performers

    @property
    def counters(self) -> SessionCounters:
        """What happened in all sessions since the start."""
        return sum((session.counters for session in self.sessions.values()), self._past)

    async def __aenter__(self) -> Host:
        backend, model = self._backend or TorchBackend.embedded(), load_face_model()
        for name, path in self._paths.items():
            performer = Performer(backend, Avatar.open(path), model)
            performer.warm()
            self._performers[name] = performer
            log.info("avatar %s from %s", name, path)
        self._scheduler = Scheduler()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in list(self.sessions.values()):
            await session.close()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._scheduler.close()

    def open_session(self, avatar: str, session_id: str | None = None) -> Session:
        """A new session, already running, with that id or a random one. Raises UnknownAvatarError, CapacityError."""
        if avatar not in self._performers:
            raise UnknownAvatarError(f"no avatar {avatar!r}; this server has {', '.join(sorted(self._performers))}")
        if len(self.sessions) >= self._max_sessions:
            raise CapacityError(f"{len(self.sessions)} sessions are open, the limit is {self._max_sessions}; try later")
        performer = self._performers[avatar]
        session = Session(session_id or secrets.token_hex(8), performer, self._scheduler, self._config, self.latencies)
        self.sessions[session.id] = session
        self._tasks.create_task(self._supervise(session), name=f"session {session.id}")
        return session

    async def _supervise(self, session: Session) -> None:
        """One session's failure must not touch the others."""
        try:
            await session.run()
        except Exception:
            log.exception("session %s failed", session.id)
        finally:
            self.sessions.pop(session.id, None)
            self._past += session.counters

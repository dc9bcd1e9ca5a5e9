"""All live sessions: opened within the server's limits, found by id, and remembered for a while after their end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from engine.errors import CapacityError, DrainingError
from engine.live.engine import Engine
from streaming.config import ServerConfig
from streaming.server.auth import Token
from streaming.server.cors import is_loopback
from streaming.server.limits import SessionRate
from streaming.server.live_session import LiveSession
from streaming.server.metrics import Metrics
from streaming.server.session_events import DRAINING, Ending
from streaming.webrtc.ice import Ice
from streaming.webrtc.viewer import Viewer

log = logging.getLogger(__name__)

MAX_REMEMBERED = 1024  # ended sessions whose ending is still known


class LiveSessions:
    """The live sessions by session id. An async context that closes them at its end."""

    def __init__(self, engine: Engine, config: ServerConfig, ice: Ice, metrics: Metrics):
        self.draining = False
        self._engine, self._config, self._ice, self._metrics = engine, config, ice, metrics
        self._rate = SessionRate(config.sessions_per_minute)
        self._live: dict[str, LiveSession] = {}
        self._ended: OrderedDict[str, Ending] = OrderedDict()
        self._tasks = asyncio.TaskGroup()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(self._live.values())

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.draining = True
        for live_session in list(self._live.values()):
            await live_session.close(DRAINING)
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def viewers(self) -> int:
        return sum(len(live_session.viewers) for live_session in self)

    def find(self, session_id: str) -> LiveSession | None:
        return self._live.get(session_id)

    def ending(self, session_id: str) -> Ending | None:
        """Why that session ended, if it has ended and is still remembered."""
        return self._ended.get(session_id)

    def owns(self, token: str) -> bool:
        """Whether `token` is the token of any session."""
        return any([live_session.admits(token) for live_session in self])  # a list: takes the same time for all

    async def open(self, avatar: str, address: str, session_id: str | None = None) -> LiveSession:
        """Open a session of that avatar for a client at `address`; its id is random by default.

        Raises UnknownAvatarError, CapacityError, QuotaError (too many from one address), DrainingError.
        """
        if self.draining:
            raise DrainingError("the server is shutting down; try another one")
        self._rate.take(address, asyncio.get_running_loop().time())
        session = self._engine.open_session(avatar, session_id)
        live_session = LiveSession(avatar, session, self._config, self._ice, self._metrics)
        await self._begin(live_session)
        log.info("session.open session=%s avatar=%r address=%s", live_session.session.id, avatar, address)
        return live_session

    async def open_standing(self, avatar: str, session_id: str, token: str | None) -> LiveSession:
        """Open a session of the server itself, which no limit of time ends. Without `token` it gets a random one.

        Raises UnknownAvatarError, CapacityError, DrainingError.
        """
        if self.draining:
            raise DrainingError("the server is shutting down")
        session = self._engine.open_session(avatar, session_id)
        standing = Token(math.inf, asyncio.get_running_loop().time(), token)
        live_session = LiveSession(avatar, session, self._config, self._ice, self._metrics, standing)
        self._ended.pop(session_id, None)
        await self._begin(live_session)
        log.info("session.open session=%s avatar=%r address=none", session_id, avatar)
        return live_session

    async def _begin(self, live_session: LiveSession) -> None:
        self._live[live_session.session.id] = live_session
        self._tasks.create_task(self._supervise(live_session))
        await live_session.started()
        self._metrics.sessions_opened.inc()

    async def add_viewer(self, live_session: LiveSession, offer: str, address: str) -> tuple[Viewer, str]:
        """Add a viewer at `address` to one of the sessions, within the server's limit. Returns it and its SDP answer.

        Raises CapacityError, QuotaError, ProtocolError, SessionClosedError.
        """
        most = self._config.max_viewers
        if self.viewers + sum(each.answering for each in self) >= most:
            raise CapacityError(f"this server has {most} viewers, which is the most; try again later")
        return await live_session.add_viewer(offer, local=is_loopback(address))

    async def drain(self) -> None:
        """Open no more sessions, and end the open ones as soon as the speech that has begun is played."""
        self.draining = True
        async with asyncio.TaskGroup() as tasks:
            for live_session in self:
                tasks.create_task(live_session.drain())

    async def _supervise(self, live_session: LiveSession) -> None:
        try:
            await live_session.run()
        except Exception:
            log.exception("session %s failed", live_session.session.id)
        finally:
            del self._live[live_session.session.id]
            self._remember(live_session)

    def _remember(self, live_session: LiveSession) -> None:
        session, counters = live_session.session, live_session.session.counters
        self._ended[session.id] = live_session.ending
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        self._metrics.sessions_closed.labels(live_session.ending.reason).inc()
        log.info(
            "session.close session=%s reason=%s duration_s=%.1f units=%d late_units=%d speaking=%d missed_pictures=%d",
            session.id,
            live_session.ending.reason,
            asyncio.get_running_loop().time() - live_session.began_s,
            counters.units,
            counters.late,
            counters.speaking,
            counters.speaking - counters.fresh_speaking,
        )

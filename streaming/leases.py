"""All sessions on loan: opened within the server's limits, found by their ids, remembered a while after their end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from engine.config import ServerConfig
from engine.errors import CapacityError, DrainingError
from engine.host import Host
from streaming.auth import Token
from streaming.ice import Ice
from streaming.lease import DRAINING, Ending, Lease
from streaming.limits import SessionRate
from streaming.metrics import Metrics
from streaming.peer import Viewer

log = logging.getLogger(__name__)

REMEMBERED = 1024  # ended sessions whose end can be told


class Leases:
    """All live leases by session id; an async context that closes them at its end."""

    def __init__(self, host: Host, config: ServerConfig, ice: Ice, metrics: Metrics):
        self.draining = False
        self._host, self._config, self._ice, self._metrics = host, config, ice, metrics
        self._rate = SessionRate(config.sessions_per_minute)
        self._live: dict[str, Lease] = {}
        self._ended: OrderedDict[str, Ending] = OrderedDict()
        self._tasks = asyncio.TaskGroup()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._live.values())

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.draining = True
        for lease in list(self._live.values()):
            await lease.close(DRAINING)
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def viewers(self) -> int:
        return sum(len(lease.viewers) for lease in self)

    def find(self, session_id: str) -> Lease | None:
        return self._live.get(session_id)

    def ending(self, session_id: str) -> Ending | None:
        """Why a session that is gone ended, if that is still known."""
        return self._ended.get(session_id)

    def owns(self, token: str) -> bool:
        """Whether it is some session's token."""
        return any([lease.admits(token) for lease in self])  # a list: all of them are compared

    async def open(self, avatar: str, address: str) -> Lease:
        """A new session of that avatar for a client at `address`.

        Raises UnknownAvatarError, CapacityError, QuotaError (too many of one address), DrainingError.
        """
        if self.draining:
            raise DrainingError("the server is shutting down; try another one")
        self._rate.take(address, asyncio.get_running_loop().time())
        lease = Lease(avatar, self._host.open_session(avatar), self._config, self._ice, self._metrics)
        await self._begin(lease)
        log.info("session.open session=%s avatar=%r address=%s", lease.session.id, avatar, address)
        return lease

    async def open_standing(self, avatar: str, session_id: str, token: str | None) -> Lease:
        """A session of the server itself, with an id and a token that are known beforehand; no limit of time ends it.

        Raises UnknownAvatarError, CapacityError, DrainingError.
        """
        if self.draining:
            raise DrainingError("the server is shutting down")
        session = self._host.open_session(avatar, session_id)
        standing = Token(math.inf, asyncio.get_running_loop().time(), token)
        lease = Lease(avatar, session, self._config, self._ice, self._metrics, standing)
        self._ended.pop(session_id, None)
        await self._begin(lease)
        log.info("session.open session=%s avatar=%r address=none", session_id, avatar)
        return lease

    async def _begin(self, lease: Lease) -> None:
        self._live[lease.session.id] = lease
        self._tasks.create_task(self._supervise(lease))
        await lease.started()
        self._metrics.sessions_opened.inc()

    async def add_viewer(self, lease: Lease, offer: str) -> tuple[Viewer, str]:
        """A new viewer of one of the sessions, within the limit of all, and the SDP answer for it."""
        most = self._config.max_viewers
        if self.viewers + sum(held.answering for held in self) >= most:
            raise CapacityError(f"{most} viewers watch this server, which is the most; try again later")
        return await lease.add_viewer(offer)

    async def drain(self) -> None:
        """Open no session any more, and end those that are open as soon as what they were saying is said."""
        self.draining = True
        async with asyncio.TaskGroup() as tasks:
            for lease in self:
                tasks.create_task(lease.drain())

    async def _supervise(self, lease: Lease) -> None:
        try:
            await lease.run()
        except Exception:
            log.exception("session %s failed", lease.session.id)
        finally:
            del self._live[lease.session.id]
            self._remember(lease)

    def _remember(self, lease: Lease) -> None:
        session, counters = lease.session, lease.session.counters
        self._ended[session.id] = lease.ending
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        self._metrics.sessions_closed.labels(lease.ending.reason).inc()
        log.info(
            "session.close session=%s reason=%s duration_s=%.1f units=%d late_units=%d speaking=%d missed_pictures=%d",
            session.id,
            lease.ending.reason,
            asyncio.get_running_loop().time() - lease.began_s,
            counters.units,
            counters.late,
            counters.speaking,
            counters.speaking - counters.fresh_speaking,
        )

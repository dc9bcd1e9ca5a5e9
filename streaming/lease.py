"""Sessions on loan to clients: who may use one, who does, and its end when nobody has for a while."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from engine.config import ServerConfig
from engine.errors import CapacityError, SessionClosedError
from engine.host import Host
from engine.session import Session
from streaming.broadcast import Broadcast
from streaming.metrics import Metrics
from streaming.peer import Viewer

log = logging.getLogger(__name__)

MAX_VIEWERS = 20  # of one session: they share an encode, but each is encrypted for in Python


class Lease:
    """One session, its secret, its viewers and its sockets."""

    def __init__(self, avatar: str, session: Session, config: ServerConfig, metrics: Metrics):
        self.avatar = avatar
        self.session = session
        self.broadcast = Broadcast(session, config.encoder)
        self.token = secrets.token_urlsafe(24)
        self.viewers: dict[str, Viewer] = {}
        self.sockets = 0
        self._answering = 0  # viewers to be
        self._config = config
        self._metrics = metrics
        self._used = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()
        self._events = session.subscribe_events()  # its end is the session's
        self._tasks: asyncio.TaskGroup | None = None  # while the session lives
        self._running = asyncio.Event()
        self._closed = asyncio.Event()

    def admits(self, token: str) -> bool:
        # headers come with surrogates for bytes that are no text: those are wrong tokens, not faults
        return hmac.compare_digest(self.token.encode(), token.encode(errors="surrogatepass"))

    async def run(self) -> None:
        """Own the tasks of the viewers until the session ends, by itself, by `close` or for want of users."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                idle = self._tasks.create_task(self._close_when_unused())
                encoding = self._tasks.create_task(self.broadcast.run())
                self._running.set()
                async for _ in self._events:
                    pass
                self._tasks = None
                idle.cancel()
                encoding.cancel()
                for viewer in self.viewers.values():
                    viewer.leave()
        finally:
            await self.session.close()
            self._closed.set()

    async def started(self) -> None:
        """Wait until viewers may be added."""
        await self._running.wait()

    async def close(self) -> None:
        """End the session, and with it its viewers and sockets."""
        await self.session.close()
        await self._closed.wait()

    async def add_viewer(self, offer: str) -> tuple[Viewer, str]:
        """A new viewer and the SDP answer for it."""
        if len(self.viewers) + self._answering >= MAX_VIEWERS:
            raise CapacityError(f"{MAX_VIEWERS} viewers watch this session; put an SFU in front of it for more")
        self._answering += 1
        viewer = Viewer(self.broadcast, self._metrics)
        try:
            answer = await viewer.answer(offer)
            if self._tasks is None:
                raise SessionClosedError(f"session {self.session.id} is closed")
        except BaseException:
            await viewer.close()
            raise
        finally:
            self._answering -= 1
        self.viewers[viewer.id] = viewer
        self._tasks.create_task(self._supervise(viewer))
        return viewer, answer

    @contextmanager
    def socket(self) -> Iterator[None]:
        """Count one speech socket as a user for the time of the block."""
        self.sockets += 1
        self._count_users()
        try:
            yield
        finally:
            self.sockets -= 1
            self._count_users()

    async def _supervise(self, viewer: Viewer) -> None:
        self._count_users()
        try:
            await viewer.run()
        except Exception:
            log.exception("viewer %s of session %s failed", viewer.id, self.session.id)
        finally:
            self.viewers.pop(viewer.id, None)
            self._count_users()

    def _count_users(self) -> None:
        used = bool(self.viewers or self.sockets)
        (self._used.set if used else self._used.clear)()
        (self._unused.clear if used else self._unused.set)()

    async def _close_when_unused(self) -> None:
        while True:
            await self._unused.wait()
            try:
                async with asyncio.timeout(self._config.idle_session_s):
                    await self._used.wait()
            except TimeoutError:
                log.info("session %s had no viewer and no socket; closing it", self.session.id)
                await self.session.close()
                return


class Leases:
    """All live leases by session id; an async context that closes them at its end."""

    def __init__(self, host: Host, config: ServerConfig, metrics: Metrics):
        self._host = host
        self._config = config
        self._metrics = metrics
        self._live: dict[str, Lease] = {}
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
        for lease in list(self._live.values()):
            await lease.close()
        await self._tasks.__aexit__(kind, error, trace)

    def find(self, session_id: str) -> Lease | None:
        return self._live.get(session_id)

    async def open(self, avatar: str) -> Lease:
        """A new session of that avatar; UnknownAvatarError, CapacityError."""
        lease = Lease(avatar, self._host.open_session(avatar), self._config, self._metrics)
        self._live[lease.session.id] = lease
        self._tasks.create_task(self._supervise(lease))
        await lease.started()
        self._metrics.sessions_opened.add()
        return lease

    async def _supervise(self, lease: Lease) -> None:
        try:
            await lease.run()
        except Exception:
            log.exception("session %s failed", lease.session.id)
        finally:
            del self._live[lease.session.id]

"""A session on loan to clients: who may use it, who does, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.errors import SessionClosedError
from engine.live.session import Session
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.config import ServerConfig
from streaming.errors import QuotaError
from streaming.publish.broadcast import Broadcast
from streaming.publish.destination import Publication, Sink
from streaming.server.auth import Token
from streaming.server.metrics import Metrics
from streaming.webrtc.ice import Ice
from streaming.webrtc.viewer import Viewer

log = logging.getLogger(__name__)

MAX_PUBLICATIONS = 8  # of one session


@dataclass(frozen=True)
class Ending:
    """Why a session ended: `reason` for programs, `detail` for people, `code` for its websockets (RFC 6455, 7.4.1)."""

    reason: str
    detail: str
    code: int = 1000


CLOSED = Ending("closed", "a client closed it")
IDLE = Ending("idle", "nobody watched it or spoke through it")
LIFETIME = Ending("lifetime", "it was open for as long as a session may be on this server")
DRAINING = Ending("draining", "the server shuts down", 1001)
FAILED = Ending("failed", "it failed; the server's log has the reason", 1011)


@dataclass(frozen=True)
class Closing:
    """The session ends within `within_s`, when what was begun has been said."""

    reason: str
    within_s: float


@dataclass(frozen=True)
class Closed:
    """The session ended."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Viewers:
    """So many watch now."""

    count: int


SessionEvent = Closing | Closed | Viewers


class LiveSession:
    """One session, its token, its viewers, its publications and its sockets. A `standing` one keeps its token, and
    neither age nor want of users ends it."""

    def __init__(
        self,
        avatar: str,
        session: Session,
        config: ServerConfig,
        ice: Ice,
        metrics: Metrics,
        standing: Token | None = None,
    ):
        self.avatar = avatar
        self.session = session
        self.broadcast = Broadcast(session, config.encoder)
        self.broadcast.times.observers.append(metrics.observe_stage)
        self.viewers: dict[str, Viewer] = {}
        self.publications: dict[str, Publication] = {}
        self.answering = 0  # viewers to be
        self.sockets = 0
        self._config, self._ice, self._metrics = config, ice, metrics
        self._loop = asyncio.get_running_loop()
        self.began_s = self._loop.time()
        self._standing = standing
        self._token = standing or self._new_token()
        self._ending: Ending | None = None
        self._listeners: list[MediaQueue[SessionEvent]] = []
        self._used = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()
        self._tasks: asyncio.TaskGroup | None = None  # while the session lives
        self._running = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def ending(self) -> Ending:
        """What ended the session; one that nobody closed has failed."""
        return self._ending or FAILED

    # ---- its token

    def admits(self, token: str) -> bool:
        return self._token.admits(token, self._loop.time())

    @property
    def token(self) -> str:
        return self._token.text

    def renew_token(self) -> str:
        """Another token; the one before opens nothing any more. What was opened with it stays open."""
        self._token = self._standing or self._new_token()
        return self._token.text

    def _new_token(self) -> Token:
        return Token(self._config.token_ttl_s, self._loop.time())

    # ---- its life

    async def run(self) -> None:
        """Own the tasks of the viewers until the session ends, by itself, by `close`, of age or for want of users."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                limits = () if self._standing else (self._close_when_unused(), self._close_when_old())
                keeping = [self._tasks.create_task(work) for work in (*limits, self.broadcast.run())]
                self._running.set()
                await self.session.ended()
                self._tasks = None
                for task in keeping:
                    task.cancel()
                await self._tell(Closed(self.ending.reason, self.ending.detail))
                for viewer in self.viewers.values():
                    viewer.leave("session")
                for publication in list(self.publications.values()):
                    await publication.stop()
        finally:
            await self.session.close()
            for listener in self._listeners:
                await listener.close()
            self._closed.set()

    async def started(self) -> None:
        """Wait until viewers may be added."""
        await self._running.wait()

    async def ended(self) -> None:
        """Wait for the end of the session."""
        await self._closed.wait()

    async def close(self, ending: Ending) -> None:
        """End the session, and with it its viewers and sockets; the first ending counts."""
        self._end(ending)
        await self.session.close()
        await self._closed.wait()

    async def drain(self) -> None:
        """Say that the end is near, let what was begun be said to its end, and end the session: after `drain_s` in any
        case, and at once when nobody is there any more."""
        await self._tell(Closing(DRAINING.reason, self._config.drain_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s), asyncio.TaskGroup() as tasks:
                waits = [tasks.create_task(self.session.drain()), tasks.create_task(self._unused.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        await self.close(DRAINING)

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending

    async def _close_when_unused(self) -> None:
        while True:
            await self._unused.wait()
            try:
                async with asyncio.timeout(self._config.idle_session_s):
                    await self._used.wait()
            except TimeoutError:
                self._end(IDLE)
                await self.session.close()
                return

    async def _close_when_old(self) -> None:
        if self._config.max_session_s is not None:
            await asyncio.sleep(self._config.max_session_s)
            self._end(LIFETIME)
            await self.session.close()

    # ---- who uses it

    async def add_viewer(self, offer: str) -> tuple[Viewer, str]:
        """A new viewer and the SDP answer for it."""
        most = self._config.max_session_viewers
        if len(self.viewers) + self.answering >= most:
            raise QuotaError(
                f"{most} viewers watch this session, which is the most; put an SFU in front of it for more"
            )
        self.answering += 1
        viewer = Viewer(self.broadcast, self._metrics, self._ice)
        try:
            answer = await viewer.answer(offer)
            if self._tasks is None:
                raise SessionClosedError(f"session {self.session.id} is closed: {self.ending.detail}")
        except BaseException:
            await viewer.close()
            raise
        finally:
            self.answering -= 1
        self.viewers[viewer.id] = viewer
        self._tasks.create_task(self._supervise(viewer))
        return viewer, answer

    def publish(self, url: str, sink: Sink) -> Publication:
        """Publish the session to one more destination, until that is stopped or the session ends."""
        if len(self.publications) >= MAX_PUBLICATIONS:
            raise QuotaError(f"{MAX_PUBLICATIONS} publications of this session are there, which is the most")
        if self._tasks is None:
            raise SessionClosedError(f"session {self.session.id} is closed: {self.ending.detail}")
        publication = Publication(url, sink, self.broadcast)
        self.publications[publication.id] = publication
        self._tasks.create_task(self._supervise_publication(publication))
        return publication

    @contextmanager
    def socket(self) -> Iterator[Callable[[], None]]:
        """Count one speech socket as a user for the time of the block, or until the function that it gets is called."""
        here = True

        def leave() -> None:
            nonlocal here
            self.sockets -= here
            here = False
            self._count_users()

        self.sockets += 1
        self._count_users()
        try:
            yield leave
        finally:
            leave()

    def listen(self) -> MediaQueue[SessionEvent]:
        """A queue of what happens to the session from now on; it closes when the session has ended."""
        if self._closed.is_set():
            raise SessionClosedError(f"session {self.session.id} is closed: {self.ending.detail}")
        queue: MediaQueue[SessionEvent] = MediaQueue(64, Policy.DROP_OLDEST)
        self._listeners.append(queue)
        return queue

    def forget(self, queue: MediaQueue[SessionEvent]) -> None:
        if queue in self._listeners:
            self._listeners.remove(queue)

    async def _tell(self, event: SessionEvent) -> None:
        for listener in list(self._listeners):
            with contextlib.suppress(QueueClosed):
                await listener.put(event)

    async def _supervise(self, viewer: Viewer) -> None:
        self._count_users()
        await self._tell(Viewers(len(self.viewers)))
        try:
            await viewer.run()
        except Exception:
            log.exception("viewer %s of session %s failed", viewer.id, self.session.id)
        finally:
            self.viewers.pop(viewer.id, None)
            self._metrics.viewers_left.labels(viewer.reason).inc()
            self._count_users()
            await self._tell(Viewers(len(self.viewers)))

    async def _supervise_publication(self, publication: Publication) -> None:
        self._count_users()
        try:
            await publication.run()
        except Exception:
            log.exception("publication of session %s to %s failed", self.session.id, publication.status.url)
        finally:
            self.publications.pop(publication.id, None)
            self._count_users()

    def _count_users(self) -> None:
        used = bool(self.viewers or self.sockets or self.publications)
        (self._used.set if used else self._used.clear)()
        (self._unused.clear if used else self._unused.set)()

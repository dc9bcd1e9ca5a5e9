"""LiveSession: an engine session that clients use over the network, its token, its users and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.errors import SessionClosedError
from engine.live.session import Session
from engine.queues import MediaQueue
from streaming.config import ServerConfig
from streaming.errors import QuotaError
from streaming.publish.broadcast import Broadcast
from streaming.publish.destination import Destination
from streaming.publish.sinks import Sink
from streaming.race import race
from streaming.server.auth import Token
from streaming.server.metrics import Metrics
from streaming.server.occupancy import Occupancy
from streaming.server.session_events import (
    DRAINING,
    FAILED,
    IDLE,
    LIFETIME,
    Closed,
    Closing,
    Ending,
    Listeners,
    SessionEvent,
    Viewers,
)
from streaming.webrtc.ice import Ice
from streaming.webrtc.viewer import Viewer

log = logging.getLogger(__name__)

MAX_DESTINATIONS = 8  # of one session


class LiveSession:
    """One session with its token, viewers, destinations and sockets.

    standing: a token that stays valid; neither age nor a lack of users then ends the session.
    """

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
        self.destinations: dict[str, Destination] = {}
        self.answering = 0  # offers of viewers that are being answered
        self.sockets = 0
        self.waiting_bytes = 0  # of speech that its sockets have read and the session has not taken
        self._config, self._ice, self._metrics = config, ice, metrics
        self._loop = asyncio.get_running_loop()
        self.began_s = self._loop.time()
        self._standing = standing
        self._token = standing or self._new_token()
        self._ending: Ending | None = None
        self._listeners = Listeners()
        self._occupancy = Occupancy()
        self._tasks: asyncio.TaskGroup | None = None  # while the session lives
        self._running = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def ending(self) -> Ending:
        """Why the session ended; `FAILED` if no ending was set."""
        return self._ending or FAILED

    # ---- its token

    def admits(self, token: str) -> bool:
        return self._token.admits(token, self._loop.time())

    @property
    def token(self) -> str:
        return self._token.text

    def renew_token(self) -> str:
        """Replace the token: the previous one opens nothing more. Connections that it opened stay open."""
        self._token = self._standing or self._new_token()
        return self._token.text

    def _new_token(self) -> Token:
        return Token(self._config.token_ttl_s, self._loop.time())

    # ---- its life

    async def run(self) -> None:
        """Run the session's tasks until it ends: by a failure, `close`, its age or a lack of users."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                limits = () if self._standing else (self._close_when_unused(), self._close_when_old())
                keeping = [self._tasks.create_task(work) for work in (*limits, self.broadcast.run())]
                self._running.set()
                try:
                    await self.session.ended()
                finally:
                    self._tasks = None  # also if the broadcast failed: nothing may be added any more
                for task in keeping:
                    task.cancel()
                await self._listeners.send(Closed(self.ending.reason, self.ending.detail))
                for viewer in self.viewers.values():
                    viewer.leave("session")
                for destination in list(self.destinations.values()):
                    await destination.stop()
        finally:
            await self.session.close()
            await self._listeners.close()
            self._closed.set()

    async def started(self) -> None:
        """Wait until viewers may be added."""
        await self._running.wait()

    async def ended(self) -> None:
        """Wait for the end of the session."""
        await self._closed.wait()

    async def close(self, ending: Ending) -> None:
        """End the session, and with it its viewers and sockets. The first ending counts."""
        self._ending = self._ending or ending
        await self.session.close()
        await self._closed.wait()

    async def drain(self) -> None:
        """Announce the end, wait until speech that has begun is played, and end the session: after `drain_s` at the
        latest, and as soon as it has no users."""
        await self._listeners.send(Closing(DRAINING.reason, self._config.drain_s))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                await race(self.session.drain(), self._occupancy.unused())
        await self.close(DRAINING)

    async def _close_when_unused(self) -> None:
        while True:
            await self._occupancy.unused()
            try:
                async with asyncio.timeout(self._config.idle_session_s):
                    await self._occupancy.used()
            except TimeoutError:
                self._ending = self._ending or IDLE
                await self.session.close()
                return

    async def _close_when_old(self) -> None:
        if self._config.max_session_s is not None:
            await asyncio.sleep(self._config.max_session_s)
            self._ending = self._ending or LIFETIME
            await self.session.close()

    # ---- its users

    async def add_viewer(self, offer: str, *, local: bool) -> tuple[Viewer, str]:
        """A new viewer, on this machine if `local`, and its SDP answer. Raises QuotaError, ProtocolError,
        SessionClosedError."""
        most = self._config.max_session_viewers
        if len(self.viewers) + self.answering >= most:
            raise QuotaError(
                f"this session has {most} viewers, which is the most; put an SFU in front of the server for more"
            )
        self.answering += 1
        viewer = Viewer(self.broadcast, self._metrics, self._ice, self._config.timeouts.viewer_connect_s, local)
        try:
            answer = await viewer.answer(offer)
            tasks = self._open_tasks()
        except BaseException:
            await viewer.close()
            raise
        finally:
            self.answering -= 1
        self.viewers[viewer.id] = viewer
        tasks.create_task(self._supervise_viewer(viewer))
        return viewer, answer

    def publish(self, url: str, sink: Sink) -> Destination:
        """Publish the session to `sink` until that is stopped or the session ends. QuotaError, SessionClosedError."""
        if len(self.destinations) >= MAX_DESTINATIONS:
            raise QuotaError(f"this session has {MAX_DESTINATIONS} publications, which is the most; delete one first")
        tasks = self._open_tasks()
        destination = Destination(url, sink, self.broadcast)
        self.destinations[destination.id] = destination
        tasks.create_task(self._supervise_destination(destination))
        return destination

    @contextmanager
    def socket(self) -> Iterator[Callable[[], None]]:
        """Count one socket as a user during the block, or until the function that it yields is called."""
        with contextlib.ExitStack() as using:
            self.sockets += 1
            using.callback(self._forget_socket)
            using.enter_context(self._occupancy.one())
            yield using.close

    def _forget_socket(self) -> None:
        self.sockets -= 1

    def listen(self) -> MediaQueue[SessionEvent]:
        """A queue of the session's events from now on, closed at its end. Raises SessionClosedError."""
        if self._closed.is_set():
            raise self._closed_error()
        return self._listeners.add()

    def forget(self, queue: MediaQueue[SessionEvent]) -> None:
        """Send no more events to a queue of `listen`."""
        self._listeners.remove(queue)

    def _open_tasks(self) -> asyncio.TaskGroup:
        if self._tasks is None:
            raise self._closed_error()
        return self._tasks

    def _closed_error(self) -> SessionClosedError:
        return SessionClosedError(f"session {self.session.id} is closed: {self.ending.detail}")

    async def _supervise_viewer(self, viewer: Viewer) -> None:
        with self._occupancy.one():
            await self._listeners.send(Viewers(len(self.viewers)))
            try:
                await viewer.run()
            except Exception:
                log.exception("viewer %s of session %s failed", viewer.id, self.session.id)
            finally:
                self.viewers.pop(viewer.id, None)
                self._metrics.viewers_left.labels(viewer.reason).inc()
        await self._listeners.send(Viewers(len(self.viewers)))

    async def _supervise_destination(self, destination: Destination) -> None:
        try:
            with self._occupancy.one():
                await destination.run()
        except Exception:
            log.exception("publication of session %s to %s failed", self.session.id, destination.status.url)
        finally:
            self.destinations.pop(destination.id, None)

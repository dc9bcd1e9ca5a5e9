"""The end of a session, with its reason, and the events for its sockets and event streams."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from engine.queues import MediaQueue, Policy, QueueClosed

LISTENER_EVENTS = 64  # queued for one listener; a slower one loses the oldest


@dataclass(frozen=True)
class Ending:
    """Why a session ended: `reason` for programs, `detail` for people, `code` for its websockets (RFC 6455, 7.4.1)."""

    reason: str
    detail: str
    code: int = 1000


CLOSED = Ending("closed", "a client closed it")
IDLE = Ending("idle", "it had no viewer, websocket or destination")
LIFETIME = Ending("lifetime", "it was open as long as this server allows")
DRAINING = Ending("draining", "the server shuts down", 1001)
FAILED = Ending("failed", "it failed; the server's log has the reason", 1011)


@dataclass(frozen=True)
class Closing:
    """The session ends within `within_s`, as soon as the speech that has begun is played."""

    reason: str
    within_s: float


@dataclass(frozen=True)
class Closed:
    """The session ended."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Viewers:
    """The number of viewers changed to `count`."""

    count: int


SessionEvent = Closing | Closed | Viewers


class Listeners:
    """The queues through which sockets and event streams get a session's events."""

    def __init__(self) -> None:
        self._queues: list[MediaQueue[SessionEvent]] = []

    def add(self) -> MediaQueue[SessionEvent]:
        """A queue of the events from now on."""
        queue: MediaQueue[SessionEvent] = MediaQueue(LISTENER_EVENTS, Policy.DROP_OLDEST)
        self._queues.append(queue)
        return queue

    def remove(self, queue: MediaQueue[SessionEvent]) -> None:
        """Send no more events to `queue`. Idempotent."""
        if queue in self._queues:
            self._queues.remove(queue)

    async def send(self, event: SessionEvent) -> None:
        for queue in list(self._queues):
            with contextlib.suppress(QueueClosed):
                await queue.put(event)

    async def close(self) -> None:
        """Close all queues: their readers get what is queued, then QueueClosed."""
        for queue in self._queues:
            await queue.close()

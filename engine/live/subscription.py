"""The subscribers of a session: each has a bounded queue of units, and none loses an event."""

from __future__ import annotations

from dataclasses import replace

from engine.media import MediaUnit
from engine.queues import MediaQueue, Policy, QueueClosed

MAX_EVENTS = 1_000  # on one unit: a reader that never reads keeps no more, the newest


class Subscriptions:
    """The queues into which a session puts its units.

    A slow reader loses the oldest units, picture and sound together, but no event: the events of a dropped unit move to
    the front of the next unit in the queue. The queues share units: pictures are not copied.
    """

    def __init__(self) -> None:
        self._queues: dict[MediaQueue[MediaUnit], bool] = {}  # and whether it takes only units with events

    def add(self, capacity: int, *, events_only: bool) -> MediaQueue[MediaUnit]:
        """A queue of all units from now on, or of those that carry events."""
        queue: MediaQueue[MediaUnit] = MediaQueue(capacity, Policy.DROP_OLDEST, inherit=_inherit)
        self._queues[queue] = events_only
        return queue

    def remove(self, queue: MediaQueue[MediaUnit]) -> None:
        """Put nothing more into `queue`; nothing happens if it was removed before."""
        self._queues.pop(queue, None)

    @property
    def backlog(self) -> int:
        """The number of units that wait in all queues."""
        return sum(len(queue) for queue in self._queues)

    async def put(self, unit: MediaUnit) -> None:
        """Put `unit` into every queue that takes it; queues that their readers closed are removed."""
        for queue, events_only in list(self._queues.items()):
            if unit.events or not events_only:
                try:
                    await queue.put(unit)
                except QueueClosed:
                    self.remove(queue)

    async def close(self) -> None:
        """Close all queues: their readers get the queued units, then the end."""
        for queue in self._queues:
            await queue.close()


def _inherit(dropped: MediaUnit, following: MediaUnit) -> MediaUnit:
    """`following` for a reader that did not get `dropped`: with the events of both, and fresh where its picture first
    went out with `dropped`."""
    events = (dropped.events + following.events)[-MAX_EVENTS:]
    return replace(following, events=events, fresh=dropped.fresh or following.fresh)

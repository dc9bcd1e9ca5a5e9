"""MediaQueue: the hand-off between tasks. Bounded, closable, with a named policy for a full queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Policy(Enum):
    WAIT = "wait"  # put() waits for room: back-pressure
    DROP_OLDEST = "drop_oldest"  # put() never waits: a slow reader loses the oldest item


class QueueClosed(Exception):
    """The queue is closed. Readers get this error once the queue is empty."""


class MediaQueue(Generic[Item]):
    """A bounded queue on one event loop. `dropped` counts the items that DROP_OLDEST removed.

    capacity: the limit of the sum of the items' sizes; a larger item is accepted only into an empty queue.
    size: the size of an item; 1 by default.
    inherit: inherit(dropped, following) returns the item that replaces `following`, with the part of `dropped` that the
    reader must get; by default `following` itself.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy,
        size: Callable[[Item], int] = lambda item: 1,
        inherit: Callable[[Item, Item], Item] = lambda dropped, following: following,
    ):
        if capacity < 1:
            raise ValueError(f"capacity {capacity}; expected at least 1")
        self._items: deque[Item] = deque()
        self._capacity = capacity
        self._size = size
        self._inherit = inherit
        self._used = 0
        self._policy = policy
        self._changed = asyncio.Condition()
        self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def __aiter__(self) -> MediaQueue[Item]:
        return self

    async def __anext__(self) -> Item:
        try:
            return await self.get()
        except QueueClosed:
            raise StopAsyncIteration from None

    async def put(self, item: Item) -> None:
        """Append `item`; the policy applies when the queue is full. Raises QueueClosed."""
        async with self._changed:
            if self._policy is Policy.WAIT:
                await self._changed.wait_for(lambda: self._closed or self._has_room(item))
            if self._closed:
                raise QueueClosed
            while not self._has_room(item):
                oldest = self._items.popleft()
                self._used -= self._size(oldest)
                self.dropped += 1
                if self._items:
                    self._items[0] = self._inherit(oldest, self._items[0])
                else:
                    item = self._inherit(oldest, item)
            self._used += self._size(item)
            self._items.append(item)
            self._changed.notify_all()

    async def get(self) -> Item:
        """Wait for the oldest item and remove it. Raises QueueClosed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or bool(self._items))
            if not self._items:
                raise QueueClosed
            item = self._items.popleft()
            self._used -= self._size(item)
            self._changed.notify_all()
            return item

    def _has_room(self, item: Item) -> bool:
        return not self._items or self._used + self._size(item) <= self._capacity

    async def close(self) -> None:
        """Readers still get the queued items, then QueueClosed; writers get QueueClosed at once. Idempotent."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

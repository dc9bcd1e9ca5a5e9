"""Occupancy: the number of users of a session; tasks can wait until it has one or none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Occupancy:
    """Counts viewers, sockets and destinations together."""

    def __init__(self) -> None:
        self._users = 0
        self._used = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one user during the block."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    async def used(self) -> None:
        """Wait until there is a user."""
        await self._used.wait()

    async def unused(self) -> None:
        """Wait until there is no user."""
        await self._unused.wait()

    def _change(self, by: int) -> None:
        self._users += by
        (self._used.set if self._users else self._used.clear)()
        (self._unused.clear if self._users else self._unused.set)()

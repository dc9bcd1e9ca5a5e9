"""The one inference thread and the choice of what it does next: of all sessions' work, the most urgent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, Protocol, TypeVar


class Client(Protocol):
    """A session, seen from the scheduler. All but `perform` is called on the event loop."""

    def deadline(self) -> float | None:
        """Loop time at which its most urgent work is due; None when it has none."""

    def begin(self) -> Any:
        """Take that work."""

    def perform(self, work: Any) -> Any:
        """Do it, on the inference thread."""

    def finish(self, work: Any, outcome: Any) -> None: ...

    def fail(self, error: Exception) -> None:
        """Its work or one of the calls above raised this."""


T = TypeVar("T")
C = TypeVar("C")


def most_urgent(clients: Iterable[tuple[float | None, float, C]]) -> C | None:
    """Of (deadline, when it was last served, client) the one to serve; the deadline is None where nothing is to do.

    The earliest deadline goes first, and waiting counts like being nearer to it: on a machine that cannot do all of
    the work, deadlines alone would serve those whose frames happen to fall first and starve the others.
    """
    waiting = [(deadline + served, client) for deadline, served, client in clients if deadline is not None]
    return min(waiting, key=itemgetter(0))[1] if waiting else None


class Scheduler:
    """Runs one piece of work after the other for any number of clients. `wake` whenever there may be new work."""

    def __init__(self) -> None:
        self._clients: dict[Client, float] = {}  # and when each was last served
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._busy = False

    def add(self, client: Client) -> None:
        self._clients[client] = asyncio.get_running_loop().time()
        self.wake()

    def remove(self, client: Client) -> None:
        del self._clients[client]

    def wake(self) -> None:
        if self._busy:
            return
        loop = asyncio.get_running_loop()
        client = most_urgent([(_ask(c, c.deadline), served, c) for c, served in self._clients.items()])
        work = None if client is None else _ask(client, client.begin)
        if client is None or work is None:
            return
        self._busy, self._clients[client] = True, loop.time()
        future = loop.run_in_executor(self._thread, client.perform, work)
        future.add_done_callback(lambda done: self._done(client, work, done))

    def _done(self, client: Client, work: Any, done: asyncio.Future[Any]) -> None:
        self._busy = False
        if client in self._clients and not done.cancelled():
            _ask(client, lambda: client.finish(work, done.result()))
        self.wake()

    async def close(self) -> None:
        """Let the work in progress end; nothing is begun any more."""
        self._clients.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)


def _ask(client: Client, question: Callable[[], T]) -> T | None:
    """The answer; None from a client that breaks over it, which fails alone."""
    try:
        return question()
    except Exception as error:
        client.fail(error)
        return None

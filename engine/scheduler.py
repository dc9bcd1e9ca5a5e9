"""The one inference thread and the choice of what it does next: of all sessions' work, the earliest deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)


class Client(Protocol):
    """A session, seen from the scheduler. All but `perform` is called on the event loop."""

    def deadline(self) -> float | None:
        """Loop time at which its most urgent work is due; None when it has none."""

    def begin(self) -> Any:
        """Take that work."""

    def perform(self, work: Any) -> Any:
        """Do it, on the inference thread."""

    def finish(self, work: Any, outcome: Any) -> None: ...

    def fail(self, error: Exception) -> None: ...


C = TypeVar("C", bound=Client)


def earliest(clients: Iterable[C]) -> C | None:
    """The client whose work is due first; among equals the one that comes first."""
    due = [
        (deadline, place, client) for place, client in enumerate(clients) if (deadline := client.deadline()) is not None
    ]
    return min(due, key=lambda entry: entry[:2])[2] if due else None


class Scheduler:
    """Runs one piece of work after the other for any number of clients. `wake` whenever there may be new work."""

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._busy = False

    def add(self, client: Client) -> None:
        self._clients.append(client)
        self.wake()

    def remove(self, client: Client) -> None:
        self._clients.remove(client)

    def wake(self) -> None:
        if self._busy:
            return
        client = earliest(self._clients)
        if client is None:
            return
        work = client.begin()
        self._busy = True
        future = asyncio.get_running_loop().run_in_executor(self._thread, client.perform, work)
        future.add_done_callback(lambda done: self._done(client, work, done))

    def _done(self, client: Client, work: Any, done: asyncio.Future[Any]) -> None:
        self._busy = False
        if client in self._clients and not done.cancelled():
            error = done.exception()
            if isinstance(error, Exception):
                log.error("work of a session failed", exc_info=error)
                client.fail(error)
            else:
                client.finish(work, done.result())
        self.wake()

    async def close(self) -> None:
        """Let the work in progress end; nothing is begun any more."""
        self._clients.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

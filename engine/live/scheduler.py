"""The one inference thread, which owns the device, and around it as little as can be: `next_batch` decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from engine.live.batching import BatchTimes, Pending, next_batch

T = TypeVar("T")


class Client(Protocol):
    """A session, seen from the scheduler. All but `perform` is called on the event loop."""

    def due(self) -> tuple[str, float] | None:
        """The stage of its most urgent work, and the loop time at which that is due; None when it has none."""

    def begin(self) -> Any:
        """Take that work."""

    def perform(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The outcomes of its work and of other clients' of that stage, on the inference thread. What fails must leave
        nothing behind: it is done again."""

    def finish(self, work: Any, outcome: Any) -> None: ...

    def fail(self, error: Exception) -> None:
        """Its work or one of the calls above raised this."""


class Scheduler:
    """Runs one batch after the other for any number of clients. `wake` whenever there may be new work."""

    def __init__(self, costs: BatchTimes | None = None) -> None:
        self._costs = costs or BatchTimes()
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
        asked = [(client, _ask(client, client.due), served_s) for client, served_s in self._clients.items()]
        waiting = [Pending(client, *due, served_s) for client, due, served_s in asked if due is not None]
        chosen = [due.client for due in next_batch(waiting, self._costs, loop.time())]
        begun = [(client, _ask(client, client.begin)) for client in chosen]
        batch = [(client, work) for client, work in begun if work is not None]
        if not batch:
            return
        self._busy = True
        self._clients.update((client, loop.time()) for client, _ in batch)
        future = loop.run_in_executor(self._thread, _perform, batch)
        future.add_done_callback(lambda done: self._done(batch, done))

    def _done(self, batch: list[tuple[Client, Any]], done: asyncio.Future[list[Any]]) -> None:
        self._busy = False
        outcomes = [] if done.cancelled() else done.result()
        for (client, work), outcome in zip(batch, outcomes, strict=False):
            if client not in self._clients:
                continue
            if isinstance(outcome, Exception):
                client.fail(outcome)
            else:
                _ask(client, partial(client.finish, work, outcome))
        self.wake()

    async def close(self) -> None:
        """Let the work in progress end; nothing is begun any more."""
        self._clients.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)


def _perform(batch: list[tuple[Client, Any]]) -> list[Any]:
    """What comes of each piece of work, or the error it raised: a batch that breaks is done again one by one."""
    try:
        return list(batch[0][0].perform([work for _, work in batch]))
    except Exception as error:
        return [error] if len(batch) == 1 else [outcome for one in batch for outcome in _perform([one])]


def _ask(client: Client, question: Callable[[], T]) -> T | None:
    """The answer; None from a client that breaks over it, which fails alone."""
    try:
        return question()
    except Exception as error:
        client.fail(error)
        return None

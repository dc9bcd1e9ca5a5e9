"""Runs batches on the inference threads; `next_batch` chooses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from engine.live.batching import BatchTimes, Pending, next_batch
from engine.live.workers import inference_threads

Result = TypeVar("Result")
Work = TypeVar("Work")
Outcome = TypeVar("Outcome")
Outcome_contra = TypeVar("Outcome_contra", contravariant=True)


class Client(Protocol[Work, Outcome_contra]):
    """The scheduler's view of a session. All methods are called on the event loop."""

    def due(self) -> tuple[str, float] | None:
        """The stage of its most urgent work, and the loop time at which that is due; None without work."""

    def begin(self) -> Work:
        """Begin the work that `due` announced."""

    def finish(self, work: Work, outcome: Outcome_contra) -> None:
        """Take the outcome of `work`."""

    def fail(self, error: Exception) -> None:
        """Its work or one of the calls above raised `error`."""


class Scheduler(Generic[Work, Outcome]):
    """Runs batches for any number of clients, as many at once as there are workers.

    A client is asked for its work when it is woken, and before and after work of it begins or ends: clients without
    news cost nothing. Call `wake` whenever a client may have other work than before.

    run: runs a batch of one stage on an inference thread and returns the outcomes in order. A batch that raises is run
    again piece by piece, so `run` must change nothing when it raises.
    costs: the times that decide the batches; the time of every run is added to them.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Outcome]],
        costs: BatchTimes | None = None,
        workers: int = 1,
    ) -> None:
        self.costs = costs or BatchTimes()
        self._run = run
        self._served_s: dict[Client[Work, Outcome], float] = {}  # loop time at which each client was last served
        self._waiting: dict[Client[Work, Outcome], Pending[Client[Work, Outcome]]] = {}  # their work when last asked
        self._threads = inference_threads(workers)
        self._free = workers

    def add(self, client: Client[Work, Outcome]) -> None:
        self._served_s[client] = asyncio.get_running_loop().time()
        self.wake(client)

    def remove(self, client: Client[Work, Outcome]) -> None:
        del self._served_s[client]
        self._waiting.pop(client, None)

    def wake(self, client: Client[Work, Outcome]) -> None:
        """Ask `client` for its work, if it was added, and begin batches while a worker is free."""
        if client in self._served_s:
            self._ask(client)
            self._begin_batches()

    def _ask(self, client: Client[Work, Outcome]) -> None:
        due = _guarded(client, client.due)
        if due is None:
            self._waiting.pop(client, None)
        else:
            self._waiting[client] = Pending(client, *due, self._served_s[client])

    def _begin_batches(self) -> None:
        while self._free and (chosen := self._choose()):
            stage = self._waiting[chosen[0]].stage
            begun = [(client, _guarded(client, client.begin)) for client in chosen]
            batch = [(client, work) for client, work in begun if work is not None]
            for client in chosen:
                del self._waiting[client]
            for client, _ in batch:
                self._served_s[client] = asyncio.get_running_loop().time()
                self._ask(client)
            if batch:
                self._start(stage, batch)

    def _choose(self) -> list[Client[Work, Outcome]]:
        """The clients of the next batch. Their work was known when they were last asked, so they are asked again: time
        has passed since."""
        now_s = asyncio.get_running_loop().time()
        asked: set[Client[Work, Outcome]] = set()
        while True:
            chosen = [pending.client for pending in next_batch(list(self._waiting.values()), self.costs, now_s)]
            unasked = [client for client in chosen if client not in asked]
            if not unasked:
                return chosen
            for client in unasked:
                self._ask(client)
            asked.update(unasked)

    def _start(self, stage: str, batch: list[tuple[Client[Work, Outcome], Work]]) -> None:
        self._free -= 1
        loop, took_s = asyncio.get_running_loop(), list[tuple[float, int]]()
        future = loop.run_in_executor(self._threads, self._perform, [work for _, work in batch], loop.time, took_s)
        future.add_done_callback(lambda done: self._done(batch, stage, took_s, done))

    def _perform(
        self, batch: Sequence[Work], clock: Callable[[], float], took_s: list[tuple[float, int]]
    ) -> list[Outcome | Exception]:
        """On an inference thread: the outcome of each piece of work, or the error that it raised. The seconds and the
        size of every run that succeeds are appended to `took_s`."""
        began_s = clock()
        try:
            outcomes: list[Outcome | Exception] = list(self._run(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [outcome for work in batch for outcome in self._perform([work], clock, took_s)]
        took_s.append((clock() - began_s, len(batch)))
        return outcomes

    def _done(
        self,
        batch: list[tuple[Client[Work, Outcome], Work]],
        stage: str,
        took_s: list[tuple[float, int]],
        done: asyncio.Future[list[Outcome | Exception]],
    ) -> None:
        self._free += 1
        for seconds, size in took_s:
            self.costs.observe(stage, seconds, size)
        outcomes = [] if done.cancelled() else done.result()
        for (client, work), outcome in zip(batch, outcomes, strict=False):
            if client not in self._served_s:
                continue
            if isinstance(outcome, Exception):
                client.fail(outcome)
            else:
                _guarded(client, partial(client.finish, work, outcome))
            self._ask(client)
        self._begin_batches()

    async def close(self) -> None:
        """Wait for the running batches; no other one begins."""
        self._served_s.clear()
        self._waiting.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)


def _guarded(client: Client[Work, Outcome], call: Callable[[], Result]) -> Result | None:
    """The result of a call of the client; None if it raises, which fails that client alone."""
    try:
        return call()
    except Exception as error:
        client.fail(error)
        return None

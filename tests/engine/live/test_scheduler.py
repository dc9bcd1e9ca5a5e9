"""A batch at a time for each worker, of all sessions the most urgent work, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from engine.live.batching import BatchTimes
from engine.live.scheduler import Scheduler
from engine.live.workers import NICENESS


class Client:
    """Has pieces of work, each with its deadline, and notes what becomes of them."""

    def __init__(self, name, deadlines, log, perform=lambda work: work):
        self.name, self.deadlines, self.log, self.perform = name, list(deadlines), log, perform
        self.errors = []

    def due(self):
        return ("work", self.deadlines[0]) if self.deadlines else None

    def begin(self):
        return self, self.deadlines.pop(0)

    def finish(self, work, outcome):
        client, deadline = work
        assert client is self and outcome == (self.name, deadline)
        self.log.append(outcome)

    def fail(self, error):
        self.errors.append(error)


def run(batch):
    """The pieces of work of a batch, each done as its client says."""
    return [client.perform((client.name, deadline)) for client, deadline in batch]


def test_work_is_done_in_the_order_of_its_deadlines(virtual):
    async def main(loop):
        scheduler, log = Scheduler(run), []
        scheduler.add(Client("idle", [], log))
        scheduler.add(Client("a", [1, 4, 5], log, lambda work: loop.spend(0.01) or work))
        scheduler.add(Client("b", [2, 3, 6], log))
        await asyncio.sleep(1)
        assert [deadline for _, deadline in log] == [1, 2, 3, 4, 5, 6]
        await scheduler.close()

    virtual(main)


def test_a_failure_is_told_to_its_client_and_the_others_go_on(virtual):
    async def main(loop):
        def explode(work):
            raise ValueError("out of paint")

        scheduler, log = Scheduler(run), []
        bad, good = Client("bad", [1], log, explode), Client("good", [2, 3], log)
        scheduler.add(bad)
        scheduler.add(good)
        await asyncio.sleep(1)
        assert [str(e) for e in bad.errors] == ["out of paint"] and log == [("good", 2), ("good", 3)]
        await scheduler.close()

    virtual(main)


def test_what_breaks_a_batch_fails_alone_and_the_rest_of_the_batch_is_done_again(virtual):
    async def main(loop):
        def perform(work):
            tried.append(work)
            if work[0] == "bad":
                raise ValueError("out of paint")
            return work

        tried, log = [], []
        scheduler = Scheduler(run, BatchTimes({"work": {1: 0.01, 4: 0.01}}))
        clients = [Client(name, [deadline], log, perform) for deadline, name in enumerate(("first", "bad", "last"), 5)]
        blocker = Client("blocker", [1], log, lambda work: loop.spend(0.1) or work)
        for client in (blocker, *clients):
            scheduler.add(client)
        await asyncio.sleep(1)
        assert [str(e) for e in clients[1].errors] == ["out of paint"] and not clients[0].errors + clients[2].errors
        assert log == [("blocker", 1), ("first", 5), ("last", 7)]
        assert tried == [("first", 5), ("bad", 6), ("first", 5), ("bad", 6), ("last", 7)]
        await scheduler.close()

    virtual(main)


def test_the_time_of_every_batch_is_measured(virtual):
    async def main(loop):
        scheduler, log = Scheduler(run, BatchTimes({"work": {1: 0.1, 4: 0.1}})), []
        scheduler.add(Client("blocker", [1], log, lambda work: loop.spend(0.1) or work))
        for name in "abc":
            scheduler.add(Client(name, [5], log, lambda work: loop.spend(0.1) or work))
        assert scheduler.costs.recent_s("work") == 0.1, "that of the table, until work was done"
        await asyncio.sleep(1)
        assert len(log) == 4 and scheduler.costs.recent_s("work") == pytest.approx(0.1 + 0.2 * (0.3 - 0.1))
        assert scheduler.costs.batch_s("work", 3) == 0.1, "the table stays"
        await scheduler.close()

    virtual(main)


def test_the_outcome_for_a_client_that_left_is_dropped(virtual):
    async def main(loop):
        scheduler, log = Scheduler(run), []
        leaver, stayer = Client("leaver", [1], log, lambda w: loop.spend(0.1) or w), Client("stayer", [2], log)
        scheduler.add(leaver)
        scheduler.add(stayer)
        scheduler.remove(leaver)
        await asyncio.sleep(1)
        assert log == [("stayer", 2)] and not leaver.errors
        await scheduler.close()

    virtual(main)


def test_as_many_batches_run_at_once_as_there_are_workers(virtual):
    async def main(loop):
        begun_s = []
        scheduler, log = Scheduler(run, workers=2), []
        for name in "abc":
            scheduler.add(
                Client(name, [1, 2], log, lambda work: begun_s.append(loop.time()) or loop.spend(0.1) or work)
            )
        await asyncio.sleep(1)
        assert begun_s == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2]) and len(log) == 6
        await scheduler.close()

    virtual(main)


@pytest.mark.parametrize("workers", [1, 2])
async def test_all_work_runs_on_the_workers_threads_which_end_with_the_scheduler(workers):
    threads, log, together = set(), [], threading.Barrier(workers)

    def perform(work):
        threads.add(threading.current_thread())
        together.wait(30)  # passes where all workers run at once
        return work

    scheduler = Scheduler(run, workers=workers)
    for name in "ab":
        scheduler.add(Client(name, [1, 2, 3], log, perform))
    async with asyncio.timeout(30):
        while len(log) < 6:
            await asyncio.sleep(0)
    await scheduler.close()
    assert len(threads) == workers and threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
async def test_workers_give_way_to_the_event_loop():
    def niceness(work):
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return work

    found, log = [], []
    scheduler = Scheduler(run)
    scheduler.add(Client("a", [1], log, niceness))
    async with asyncio.timeout(30):
        while not log:
            await asyncio.sleep(0)
    await scheduler.close()
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found == [min(19, here + NICENESS)]


async def test_closing_waits_for_the_work_in_progress():
    entered, leave, log = threading.Event(), threading.Event(), []
    scheduler = Scheduler(run)
    scheduler.add(Client("a", [1, 2], log, lambda work: entered.set() or (leave.wait(60) and work)))
    while not entered.is_set():
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(scheduler.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    leave.set()
    await asyncio.wait_for(closing, 60)
    await asyncio.sleep(0)
    assert log == []


@pytest.mark.parametrize("broken", ["due", "begin", "finish"])
def test_a_client_that_breaks_on_the_loop_fails_alone(virtual, broken):
    async def main(loop):
        scheduler, log = Scheduler(run), []
        bad, good = Client("bad", [1], log), Client("good", [2, 3], log)

        def explode(*args):
            bad.deadlines.clear()
            bad.due = lambda: None
            raise ValueError(broken)

        setattr(bad, broken, explode)
        scheduler.add(good)
        scheduler.add(bad)
        for _ in range(2):
            await asyncio.sleep(1)
            scheduler.wake(bad)  # as every emitted frame does
        await asyncio.sleep(1)
        assert [str(e) for e in bad.errors] == [broken] and log == [("good", 2), ("good", 3)]
        await scheduler.close()

    virtual(main)


def test_a_client_without_news_is_not_asked(virtual):
    async def main(loop):
        scheduler, log, silent = Scheduler(run), [], [Client(str(i), [], []) for i in range(50)]
        asked = []
        for client in silent:
            client.due = lambda client=client: asked.append(client)
            scheduler.add(client)
        scheduler.add(Client("busy", range(100), log))
        await asyncio.sleep(1)
        assert len(log) == 100 and asked == silent, "each once, when it was added"
        await scheduler.close()

    virtual(main)


def test_work_that_is_withdrawn_while_it_waits_is_not_begun(virtual):
    async def main(loop):
        scheduler, log = Scheduler(run), []
        scheduler.add(Client("blocker", [1], log, lambda work: loop.spend(0.1) or work))
        withdrawing, other = Client("withdrawing", [2], log), Client("other", [3], log)
        scheduler.add(withdrawing)
        scheduler.add(other)
        withdrawing.deadlines.clear()
        await asyncio.sleep(1)
        assert log == [("blocker", 1), ("other", 3)] and not withdrawing.errors
        await scheduler.close()

    virtual(main)


def test_a_client_that_left_may_still_be_woken(virtual):
    async def main(loop):
        scheduler, log = Scheduler(run), []
        client = Client("a", [], log)
        scheduler.add(client)
        scheduler.remove(client)
        client.deadlines = [1]
        scheduler.wake(client)
        await asyncio.sleep(1)
        assert log == []
        await scheduler.close()

    virtual(main)

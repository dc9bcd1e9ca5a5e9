"""Measured times of batches, and the choice of the next batch from them, which needs neither clock nor thread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engine.media import FPS

SIZES = (1, 2, 4, 8, 16, 32)
PAYS = 0.9  # share of the time per job at the next smaller size; a smaller gain may be a measurement error
LONGEST_S = 0.5 / FPS  # work that arrives during a batch waits for its end
TRIALS = 5
SMOOTHING = 0.2  # the weight of the latest batch
ROUNDING = 1e-9  # of a sum of shares
UNMEASURED_S = 0.02  # assumed for a stage that has not run yet

C = TypeVar("C")


@dataclass(frozen=True)
class Pending(Generic[C]):
    """The most urgent work of a client: its stage, the loop time at which it is due, and the loop time at which the
    client was last served. Work of one stage can be done in one batch."""

    client: C
    stage: str
    deadline_s: float
    served_s: float


@dataclass
class BatchTimes:
    """Times of batches on this device: the only measured costs that decisions use.

    seconds: by stage, and by size for the sizes that pay, which include 1; measured before the first session. They
    decide the batches and the number of admitted sessions, so that a slow moment refuses no session. Work of a stage
    without times runs one by one, and its cost counts as zero.
    """

    seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    _recent_s: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _slowdown: float = field(default=1.0, init=False, repr=False)

    def observe(self, stage: str, seconds: float, size: int = 1) -> None:
        """Record the duration of a batch of `size` jobs of `stage`."""
        recent_s = self.recent_s(stage)
        self._recent_s[stage] = recent_s + SMOOTHING * (seconds - recent_s)
        expected_s = self.batch_s(stage, size)
        if expected_s and stage != "idle":
            self._slowdown += SMOOTHING * (seconds / expected_s - self._slowdown)

    def recent_s(self, stage: str) -> float:
        """Smoothed seconds of the latest batches of `stage`, of any size: the machine's current speed, from which
        sessions choose their lead and the pictures to skip."""
        return self._recent_s.get(stage, self.seconds.get(stage, {1: UNMEASURED_S})[1])

    def sizes(self, stage: str) -> list[int]:
        """The batch sizes that pay, in order."""
        return sorted(self.seconds.get(stage, {1: 0.0}))

    def batch_s(self, stage: str, count: int) -> float:
        """Seconds of a batch of `count` jobs, at most the largest size: the time of the next size up."""
        size = next(size for size in self.sizes(stage) if size >= count)
        return self.seconds.get(stage, {1: 0.0})[size]

    def each_s(self, stage: str, count: int) -> float:
        """Seconds per job when `count` jobs wait together, in batches of the best size up to `count`."""
        return min(self.batch_s(stage, size) / size for size in self.sizes(stage) if size <= max(1, count))

    def load(self, sessions: int, rates_hz: Mapping[str, float]) -> float:
        """The share of the device's time that `sessions` need, each with jobs at these rates by stage."""
        return sessions * self._share(sessions, rates_hz)

    def _share(self, sessions: int, rates_hz: Mapping[str, float]) -> float:
        """The load of one of so many sessions."""
        return sum(rate * self.each_s(stage, sessions) for stage, rate in rates_hz.items())

    def most_sessions(self, choices: Sequence[Mapping[str, float]], limit: float) -> float:
        """The number of sessions, admitted one by one, whose load stays within `limit`, each with the cheapest of the
        `choices` of rates; infinite where they cost nothing."""
        for size, largest in zip(SIZES, (*(size - 1 for size in SIZES[1:]), math.inf), strict=True):
            # From `size` to `largest` sessions all have the same share.
            share = min(self._share(size, rates_hz) for rates_hz in choices)
            fitting = (limit + ROUNDING) // share if share else math.inf
            if fitting < largest:
                return max(size - 1, fitting)
        return math.inf

    def present_load(self, sessions: int, rates_hz: Mapping[str, float]) -> float:
        """`load` at the machine's present speed, which the latest batches of any stage show."""
        return self._slowdown * self.load(sessions, rates_hz)

    def slower(self, other: BatchTimes) -> BatchTimes:
        """For avatars that share batches: the sizes that pay for both, at the longer time of the two."""
        stages = {*self.seconds, *other.seconds}
        return BatchTimes({stage: _slower(self.seconds.get(stage), other.seconds.get(stage)) for stage in stages})


def _slower(one: Mapping[int, float] | None, two: Mapping[int, float] | None) -> Mapping[int, float]:
    one, two = one or two or {}, two or one or {}
    return {size: max(one[size], two[size]) for size in one if size in two}


def next_batch(waiting: Sequence[Pending[C]], costs: BatchTimes, now_s: float) -> list[Pending[C]]:
    """The batch to run next; empty only if nothing waits.

    Work is ordered by its deadline plus the time at which its client was last served: on a machine that cannot do all
    of the work, deadlines alone would always serve the clients whose frames fall first and starve the others. The first
    in this order is always in the batch. The next of the same stage join it if that takes less time per job and makes
    no work late. Exactly: all work that would meet its deadline if the waiting work were done one by one in this order
    still meets it behind this batch. Every later choice follows the same rule, so this holds until all work is done.
    """
    order = sorted(waiting, key=lambda pending: pending.deadline_s + pending.served_s)
    if not order:
        return []
    stage = order[0].stage
    alike = [pending for pending in order if pending.stage == stage]
    best = 1
    for size in costs.sizes(stage):
        count = min(size, len(alike))
        cheaper = costs.batch_s(stage, count) / count < costs.batch_s(stage, best) / best
        if count > best and cheaper and _keeps_deadlines(alike[:count], order, costs, now_s):
            best = count
    return alike[:best]


def _keeps_deadlines(batch: Sequence[Pending[C]], order: Sequence[Pending[C]], costs: BatchTimes, now_s: float) -> bool:
    """Whether all work that is in time one by one is also in time behind `batch`, with the rest one by one."""
    alone_s = now_s
    together_s = batch_s = now_s + costs.batch_s(batch[0].stage, len(batch))
    joined = {id(pending) for pending in batch}
    for pending in order:
        alone_s += costs.batch_s(pending.stage, 1)
        if id(pending) in joined:
            ends_s = batch_s
        else:
            together_s += costs.batch_s(pending.stage, 1)
            ends_s = together_s
        if alone_s <= pending.deadline_s < ends_s:
            return False
    return True


def measure(
    run: Callable[[int], object], sizes: Sequence[int] = SIZES, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Seconds by `clock` of run(size), warm, by size, for the sizes that pay: 1, and those that take clearly less time
    per job than the next smaller one and at most half a frame in all."""
    times: dict[int, float] = {}
    for size in sizes:
        seconds = _median_s(run, size, clock)
        if times and seconds > LONGEST_S:
            break
        if not times or seconds / size < PAYS * min(s / n for n, s in times.items()):
            times[size] = seconds
    return times


def _median_s(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    run(size)  # compiles and allocates
    trials = []
    for _ in range(TRIALS):
        began = clock()
        run(size)
        trials.append(clock() - began)
    return statistics.median(trials)

"""Which batch goes next: nothing is lost or starves, and a batch makes nobody late who would have been in time."""

from __future__ import annotations

import math
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.live.batching import LONGEST_S, SIZES, BatchTimes, Pending, measure, next_batch

STAGES = ("lips", "picture")


def simulate(waiting, costs, now_s):
    """Do what waits to the end: when each client's work was done, and the sizes of the batches."""
    waiting, done, sizes = list(waiting), {}, []
    while batch := next_batch(waiting, costs, now_s):
        assert batch[0] is min(waiting, key=lambda due: due.deadline_s + due.served_s)
        assert len({due.stage for due in batch}) == 1 and len(batch) <= costs.sizes(batch[0].stage)[-1]
        now_s += costs.batch_s(batch[0].stage, len(batch))
        sizes.append(len(batch))
        for due in batch:
            assert due.client not in done, "done twice"
            done[due.client] = now_s
            waiting.remove(due)
    assert not waiting, "lost"
    return done, sizes


@st.composite
def tables(draw):
    """Batch times that rise with the size, in any way."""
    found = {}
    for stage in STAGES:
        steps = draw(st.lists(st.floats(1e-4, 0.03), min_size=len(SIZES), max_size=len(SIZES)))
        kept = draw(st.sets(st.sampled_from(SIZES))) | {1}
        found[stage] = {size: sum(steps[: i + 1]) for i, size in enumerate(SIZES) if size in kept}
    return BatchTimes(found)


works = st.lists(st.tuples(st.sampled_from(STAGES), st.floats(0.9, 1.5), st.floats(0.8, 1.0)), max_size=40).map(
    lambda rows: [Pending(i, *row) for i, row in enumerate(rows)]
)


@settings(deadline=None, max_examples=60)
@given(works, tables())
def test_whoever_is_in_time_one_by_one_is_in_time_in_batches(waiting, costs):
    alone = BatchTimes({stage: {1: costs.batch_s(stage, 1)} for stage in STAGES})
    one_by_one, _ = simulate(waiting, alone, 1.0)
    batched, _ = simulate(waiting, costs, 1.0)
    for due in waiting:
        if one_by_one[due.client] <= due.deadline_s:
            assert batched[due.client] <= due.deadline_s + 1e-9


@settings(deadline=None, max_examples=60)
@given(works, tables())
def test_batches_end_no_later_than_one_by_one(waiting, costs):
    alone = BatchTimes({stage: {1: costs.batch_s(stage, 1)} for stage in STAGES})
    last = max(simulate(waiting, costs, 1.0)[0].values(), default=0.0)
    assert last <= max(simulate(waiting, alone, 1.0)[0].values(), default=0.0) + 1e-9


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), tables(), st.data())
def test_nobody_starves_on_a_machine_that_cannot_do_the_work(sessions, costs, data):
    """Everybody always has work; whose frames fall first, and how late they already are, is anybody's guess."""
    ahead = data.draw(st.lists(st.floats(0.0, 0.3), min_size=sessions, max_size=sessions))
    stages = data.draw(st.lists(st.sampled_from(STAGES), min_size=sessions, max_size=sessions))
    now_s, served, longest = 0.0, [0.0] * sessions, 0.0
    slowest = max(costs.batch_s(stage, costs.sizes(stage)[-1]) for stage in STAGES)
    for _ in range(20 * sessions):
        waiting = [Pending(i, stages[i], now_s + ahead[i], served[i]) for i in range(sessions)]
        batch = next_batch(waiting, costs, now_s)
        for due in batch:
            longest = max(longest, now_s - served[due.client])
            served[due.client] = now_s
        now_s += costs.batch_s(batch[0].stage, len(batch))
    longest = max([longest, *(now_s - last for last in served)])
    assert longest <= max(ahead) + (sessions + 1) * slowest + 1e-9


def waiting(*deadlines, stage="picture", served_s=0.0):
    return [Pending(i, stage, deadline, served_s) for i, deadline in enumerate(deadlines)]


def chosen(due, costs, now_s=0.0):
    return [one.client for one in next_batch(due, costs, now_s)]


def test_the_earliest_deadline_goes_first_and_nothing_is_chosen_of_nothing():
    assert chosen(waiting(3.0, 1.0, 2.0), BatchTimes()) == [1] and chosen([], BatchTimes()) == []


def test_a_client_that_has_waited_goes_before_one_just_served():
    due = [Pending("served", "picture", 3.00, 2.9), Pending("waiting", "picture", 3.03, 2.8)]
    assert chosen(due, BatchTimes()) == ["waiting"]


def test_work_of_one_stage_joins_where_that_takes_less_time_for_each():
    cheap = BatchTimes({"picture": {1: 0.010, 2: 0.012, 4: 0.016}})
    assert chosen(waiting(1.0, 1.1, 1.2, 1.3, 1.4), cheap) == [0, 1, 2, 3]
    assert chosen(waiting(1.0, 1.1, 1.2), cheap) == [0, 1, 2], "a batch of four takes three as well"
    mixed = [*waiting(1.0), Pending("ear", "lips", 1.1, 0.0), Pending("late", "picture", 1.2, 0.0)]
    assert chosen(mixed, cheap) == [0, "late"]
    assert chosen(waiting(1.0, 1.1), BatchTimes({"picture": {1: 0.010, 2: 0.021}})) == [0]


def test_a_batch_gives_way_to_a_deadline_that_it_would_miss():
    costs = BatchTimes({"picture": {1: 0.010, 2: 0.015, 4: 0.020}})
    assert chosen(waiting(0.011, 1.0, 1.1, 1.2), costs) == [0], "it waits for no other"
    assert chosen(waiting(0.016, 1.0, 1.1, 1.2), costs) == [0, 1]
    assert chosen(waiting(0.009, 1.0, 1.1, 1.2), costs) == [0, 1, 2, 3], "it is late in any case"
    urgent = [*waiting(0.5, 0.6), Pending("ear", "lips", 0.012, 0.6)]
    assert chosen(urgent, BatchTimes({**costs.seconds, "lips": {1: 0.002}})) == [0, 1]
    urgent = [Pending(0, "picture", 0.5, -0.6), Pending(1, "picture", 0.6, 0.0), Pending("ear", "lips", 0.0121, 0.0)]
    assert chosen(urgent, BatchTimes({**costs.seconds, "lips": {1: 0.002}})) == [0]


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        (lambda n: 0.001 * n, [1]),
        (lambda n: 0.0005 + 0.0001 * n, [1, 2, 4, 8, 16, 32]),
        (lambda n: 0.001 * n if n < 4 else 0.002, [1, 4, 8, 16, 32]),
        (lambda n: 0.9 * LONGEST_S if n <= 4 else 2 * LONGEST_S, [1, 2, 4]),
        (lambda n: 3 * LONGEST_S, [1]),
    ],
)
def test_sizes_that_pay_are_measured(seconds, sizes):
    now = [0.0]

    def run(size):
        now[0] += seconds(size)

    times = measure(run, clock=lambda: now[0])
    assert list(times) == sizes and times[1] == pytest.approx(seconds(1))


def test_the_load_counts_what_sessions_need_at_the_batches_that_they_fill():
    costs = BatchTimes({"picture": {1: 0.010, 4: 0.020}, "lips": {1: 0.008}})
    rates = {"picture": 25.0, "lips": 6.25}
    assert costs.load(0, rates) == 0
    assert costs.load(1, rates) == pytest.approx(0.30)
    assert costs.load(4, rates) == pytest.approx(4 * (25 * 0.005 + 0.05))
    assert BatchTimes().load(100, rates) == 0


def test_the_present_speed_follows_what_was_measured_last():
    costs = BatchTimes({"picture": {1: 0.010, 4: 0.020}})
    assert costs.recent_s("picture") == 0.010 and costs.recent_s("lips") > 0
    costs.observe("picture", 1.0)
    assert 0.1 < costs.recent_s("picture") < 0.3, "one slow moment is not the speed of the machine"
    for _ in range(50):
        costs.observe("picture", 0.030)
    assert costs.recent_s("picture") == pytest.approx(0.030, rel=0.01)
    assert costs.load(1, {"picture": 25}) == pytest.approx(0.25), "a slow moment turns nobody away"


def test_work_whose_cost_counts_as_zero_tells_nothing_of_the_machines_speed():
    costs = BatchTimes({"lips": {1: 0.0}, "best": {1: 0.01}})
    for stage in ("lips", "another"):
        costs.observe(stage, 0.5)
    assert costs.present_load(1, {"best": 25}) == pytest.approx(costs.load(1, {"best": 25}))


def test_of_two_avatars_the_slower_one_counts():
    one, two = BatchTimes({"picture": {1: 0.01, 2: 0.012}}), BatchTimes({"picture": {1: 0.02}, "idle": {1: 0.001}})
    assert one.slower(two).seconds == two.slower(one).seconds == {"picture": {1: 0.02}, "idle": {1: 0.001}}
    assert BatchTimes().slower(one).seconds == one.seconds


@pytest.mark.parametrize("limit", [0.0, 0.2, 0.9, 1.8, 40.0])
def test_sessions_are_admitted_one_by_one_until_the_next_is_too_many(limit):
    """As many as one finds by trying every number; a larger one may need less than a smaller one."""
    costs = BatchTimes(
        {"best": {1: 0.010, 4: 0.020, 8: 0.024}, "fast": {1: 0.012, 2: 0.012}, "lips": {1: 0.008, 2: 0.009}}
    )
    choices = [{"best": 25.0, "lips": 6.25}, {"fast": 25.0, "lips": 6.25}]
    one_by_one = takewhile(lambda n: min(costs.load(n, rates) for rates in choices) <= limit, range(1, 500))
    assert costs.most_sessions(choices, limit) == sum(1 for _ in one_by_one)


def test_sessions_that_cost_nothing_have_no_limit():
    assert BatchTimes().most_sessions([{"best": 25.0}], 0.9) == math.inf

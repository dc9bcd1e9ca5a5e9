"""The base loop visits every frame, starts where it says and never jumps except at a matched joint."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.avatar.loop import Loop


@pytest.mark.parametrize("mode", ["wrap", "ping_pong"])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (3, 10), (7, 250)])
def test_a_period_visits_every_frame_and_nothing_else(mode, start, stop):
    loop = Loop(mode, start, stop)
    assert {loop.frame_at(n) for n in range(loop.period)} == set(range(start, stop))


@pytest.mark.parametrize("mode", ["wrap", "ping_pong"])
def test_it_begins_at_start_and_repeats_for_ever(mode):
    loop = Loop(mode, 4, 31)
    day = 25 * 60 * 60 * 24
    assert loop.frame_at(0) == 4
    assert [loop.frame_at(day * loop.period + n) for n in range(60)] == [loop.frame_at(n) for n in range(60)]


def test_ping_pong_moves_by_single_frames_and_shows_no_frame_twice_in_a_row():
    loop = Loop("ping_pong", 2, 9)
    path = [loop.frame_at(n) for n in range(40)]
    assert {abs(b - a) for a, b in pairwise(path)} == {1}


def test_wrap_jumps_only_from_the_last_frame_to_the_first():
    loop = Loop("wrap", 2, 9)
    jumps = [(a, b) for a, b in zip(range(60), range(1, 61), strict=True) if loop.frame_at(b) != loop.frame_at(a) + 1]
    assert {(loop.frame_at(a), loop.frame_at(b)) for a, b in jumps} == {(8, 2)}


@pytest.mark.parametrize("broken", [("spiral", 0, 5), ("wrap", 5, 5), ("wrap", -1, 5)])
def test_an_impossible_loop_is_refused(broken):
    with pytest.raises(ValueError, match="expected"):
        Loop(*broken)

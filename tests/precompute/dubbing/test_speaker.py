"""Whose voice the original sound is."""

from __future__ import annotations

import numpy as np
import pytest

from precompute.dubbing.speaker import Agreement, speakers, talking_share, turns

RATE_HZ = 25.0


def talking(count):
    return (0.05 + 0.04 * np.sin(np.arange(count) * 1.3)).astype(np.float32)


def still(count):
    return np.full(count, 0.02, np.float32)


@pytest.mark.parametrize(
    ("correlations", "expected"),
    [((0.6, 0.1), [1]), ((0.6, 0.4), [1, 2]), ((0.1, 0.05), []), ((0.25, 0.6), [2]), ((), [])],
)
def test_those_speak_whose_mouths_agree_with_the_sound(a_person, a_run, correlations, expected):
    people = [a_person([a_run()], number) for number in range(1, len(correlations) + 1)]
    assert speakers(people, [Agreement(c, 100) for c in correlations]) == expected


def test_of_two_speakers_in_one_picture_the_one_whose_mouth_moves_has_the_turn(a_person, a_run):
    first = a_person([a_run(opening=np.r_[talking(100), still(100)])], 1)
    second = a_person([a_run(opening=np.r_[still(100), talking(100)])], 2)
    having = turns([first, second], 200, RATE_HZ)
    assert having[1][:80].all()
    assert having[2][120:].all()
    assert not (having[1] & having[2]).any()


def test_a_speaker_who_is_alone_in_the_picture_has_the_turn(a_person, a_run):
    first = a_person([a_run(start=0, opening=talking(50))], 1)
    second = a_person([a_run(start=50, opening=still(50))], 2)
    having = turns([first, second], 100, RATE_HZ)
    assert having[1].tolist() == [True] * 50 + [False] * 50
    assert having[2].tolist() == [False] * 50 + [True] * 50


def test_the_share_in_which_a_mouth_talks_is_over_all_runs(a_person, a_run):
    person = a_person([a_run(opening=talking(100)), a_run(start=100, opening=still(100))])
    assert talking_share(person, RATE_HZ) == pytest.approx(0.5, abs=0.05)

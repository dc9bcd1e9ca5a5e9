"""Which pictures get a new mouth, how far, and why others keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from engine.models.persona import no_persona
from precompute.dubbing.cast import part, speech_at
from precompute.dubbing.mouths import change, stretches, talks, usable

RATE_HZ = 25.0


def free(count):
    return np.full(count, "", dtype="U8")


def test_a_mouth_that_neither_speaks_nor_has_to_close_is_left_alone():
    plan = change(free(50), np.zeros(50, bool), np.zeros(50), np.ones(50, bool), RATE_HZ)
    assert not plan.pixels.any()
    assert set(plan.kept) == {"at rest"}
    assert not plan.closes.any()


def test_a_mouth_that_talks_in_the_original_closes_where_the_new_speech_is_silent():
    talking = np.zeros(100, bool)
    talking[30:60] = True
    plan = change(free(100), talking, np.zeros(100), np.ones(100, bool), RATE_HZ)
    assert (plan.lips[30:60] == 1).all()
    assert plan.closes[30:60].all()
    assert plan.closes.sum() == 30
    assert not plan.pixels[:20].any()
    assert not plan.pixels[70:].any()


def test_new_lips_come_and_go_gradually():
    speech = np.zeros(100)
    speech[40:60] = 1
    lips = change(free(100), np.zeros(100, bool), speech, np.ones(100, bool), RATE_HZ).lips
    assert lips.max() == 1
    assert np.abs(np.diff(lips)).max() <= 0.25
    assert (lips[40:60] == 1).all()


def test_pixels_fade_at_the_beginning_of_the_ramp_while_the_lips_are_the_pictures_own():
    speech = np.r_[np.zeros(20), np.ones(20)]
    plan = change(free(40), np.zeros(40, bool), speech, np.ones(40, bool), RATE_HZ)
    ramp = (plan.lips > 0) & (plan.lips < 1)
    assert ramp.any()
    assert (plan.pixels[ramp] > plan.lips[ramp]).all()


@pytest.mark.parametrize("reason", ["turned", "small", "unsure", "covered"])
def test_a_picture_that_cannot_be_done_well_keeps_its_mouth_with_a_soft_transition(reason):
    reasons = free(80)
    reasons[40] = reason
    plan = change(reasons, np.ones(80, bool), np.ones(80), np.ones(80, bool), RATE_HZ)
    assert plan.pixels[40] == 0
    assert plan.kept[40] == reason
    assert (np.diff(plan.lips[34:41]) <= 0).all()
    assert 0 < plan.lips[39] < 1
    assert (plan.lips[:30] == 1).all()


def test_nothing_changes_outside_the_passage():
    allowed = np.zeros(60, bool)
    allowed[20:40] = True
    plan = change(free(60), np.ones(60, bool), np.ones(60), allowed, RATE_HZ)
    assert not plan.pixels[~allowed].any()
    assert set(plan.kept[~allowed]) == {"passage"}


def test_a_run_that_begins_with_speech_needs_no_ramp_because_the_shot_begins_there():
    plan = change(free(30), np.zeros(30, bool), np.ones(30), np.ones(30, bool), RATE_HZ)
    assert (plan.lips == 1).all()


def test_ramps_last_as_long_at_any_rate():
    seconds = []
    for rate_hz in (25.0, 50.0, 60.0):
        speech = np.r_[np.zeros(int(rate_hz)), np.ones(int(rate_hz))]
        lips = change(free(len(speech)), np.zeros(len(speech), bool), speech, np.ones(len(speech), bool), rate_hz).lips
        seconds.append(np.count_nonzero((lips > 0) & (lips < 1)) / rate_hz)
    assert np.ptp(seconds) < 0.03


def test_a_moving_mouth_talks_and_a_still_one_does_not(a_run):
    opening = np.full(100, 0.02, np.float32)
    opening[40:70] += 0.06 * np.abs(np.sin(np.arange(30)))
    talking = talks(a_run(opening=opening), RATE_HZ)
    assert talking[42:68].all()
    assert not talking[:25].any()
    assert not talking[90:].any()


def test_a_smile_that_stays_open_does_not_talk(a_run):
    assert not talks(a_run(opening=np.full(100, 0.09, np.float32)), RATE_HZ).any()


def test_unsure_small_and_turned_faces_are_named(a_person, a_run):
    run = a_run(
        lip_error_px=np.r_[np.full(40, 0.3), 9.0].astype(np.float32),
        face_px=np.r_[20.0, np.full(40, 200.0)],
        yaw_deg=np.r_[0.0, 70.0, np.zeros(39)],
    )
    reasons = usable(a_person([run]), run)
    assert (reasons[0], reasons[1], reasons[40]) == ("small", "turned", "unsure")
    assert set(reasons[2:40]) == {""}


def test_pictures_with_an_object_before_the_mouth_are_named(a_person, a_run):
    run = a_run(covered=(5, 6, 7, 8))
    assert set(usable(a_person([run]), run)[5:9]) == {"covered"}
    assert not a_person([run]).good[0][5:9].any()


def test_consecutive_pictures_of_one_reason_form_a_stretch():
    assert stretches(["", "turned", "turned", ""], 10) == [(10, 11, ""), (11, 13, "turned"), (13, 14, "")]


def test_speech_is_looked_up_in_the_middle_of_each_picture():
    share = np.array([0.0, 1.0, 1.0, 0.0])
    assert np.allclose(speech_at(share, np.arange(4) / 25, np.full(4, 1 / 25)), share)
    assert speech_at(share, np.array([-1.0, 9.0]), np.full(2, 0.04)).tolist() == [0, 0]


def test_a_loop_shows_a_run_twice_and_each_time_begins_anew(a_person, a_run):
    run = a_run(start=0)
    source = np.tile(np.arange(len(run)), 2)
    cast = part(
        a_person([run]), "auto", no_persona(), source, np.ones(len(source)), np.ones(len(source), bool), RATE_HZ
    )
    assert [(passage.first, passage.t[0], len(passage.t)) for passage in cast.passages] == [
        (0, 0, len(run)),
        (len(run), 0, len(run)),
    ]


def test_pictures_without_the_person_belong_to_no_passage(a_person, a_run):
    run = a_run(start=10)
    count = 20 + len(run)
    cast = part(a_person([run]), "auto", no_persona(), np.arange(count), np.ones(count), np.ones(count, bool), RATE_HZ)
    assert (cast.at[:10] == -1).all()
    assert (cast.at[10 + len(run) :] == -1).all()
    assert (cast.at[10 : 10 + len(run)] == 0).all()


def test_a_passage_has_one_direction(a_person, a_run):
    run = a_run()
    source = np.r_[np.arange(10), np.arange(8, 2, -1), np.arange(4, 12), np.arange(20, 25)]
    everywhere = np.ones(len(source), bool)
    cast = part(a_person([run]), "auto", no_persona(), source, np.ones(len(source)), everywhere, RATE_HZ)
    assert [(passage.t[0], passage.t[-1]) for passage in cast.passages] == [(0, 9), (8, 3), (4, 11), (20, 24)]

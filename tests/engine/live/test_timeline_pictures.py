"""The timeline under barge-in, and which picture it shows when."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
from player import CONFIG, LEAD, Player, at_48k, openings, speech

from engine.errors import CapacityError
from engine.live.job import LipsJob, PaintJob
from engine.live.quality import Pace
from engine.live.timeline import MAX_UTTERANCES
from engine.media import SAMPLES_PER_FRAME, PlaybackFinished

# ---- barge-in


MOMENTS = ["waiting", "arrived", "anchored", "mid-word", "late-in-speech", "release", "idle"]


def bring_to(player, moment):
    """Two utterances at 24 kHz, the second one behind the first, taken to a moment of their playback."""
    if moment == "waiting":
        player.say("a", speech(0.2, 24_000), 24_000, end=False)
        player.emit(3)
        return
    player.say("a", speech(0.8, 24_000), 24_000, end=moment != "mid-word")
    if moment in ("arrived", "anchored", "mid-word"):
        player.say("b", speech(0.5, 24_000, seed=3), 24_000, end=False)
    if moment == "arrived":
        return
    if moment == "anchored":
        player.work()
        return
    if moment == "idle":
        player.until_idle().emit(20)
        return
    frames = {"mid-word": LEAD + 7, "late-in-speech": LEAD + 18, "release": LEAD + 24}
    player.emit(frames[moment])
    assert player.units[-1].speaking is (moment != "release")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("in_flight", [None, LipsJob, PaintJob])
def test_a_cancel_silences_the_very_next_frame_and_closes_the_mouth(make_puppet, opening_of, moment, times, in_flight):
    player = Player(make_puppet())
    bring_to(player, moment)
    before = len(player.units)
    open_before = opening_of(player.units[-1].image) if player.units else 0.0
    names = {e.utterance for e in player.events if isinstance(e, PlaybackFinished)}
    job = None
    if in_flight is not None and moment in ("arrived", "anchored", "mid-word", "late-in-speech"):
        job = player.take(in_flight)
    played = sum(u.samples.any() for u in player.units)
    for _ in range(times):
        player.timeline.cancel()
    if job is not None:
        player.finish(job)
    epoch = player.timeline.epoch
    player.emit(30)
    after = player.units[before:]
    assert not any(u.samples.any() or u.speaking for u in after) and {u.epoch for u in after} == {epoch}
    closing = openings(player, opening_of)[before:]
    assert (np.diff([open_before, *closing]) <= 1e-6).all(), "the mouth only ever closes"
    assert not closing[CONFIG.crossfade_frames + 1 :].any()
    if open_before > 0.5:
        assert closing[0] > 0.5 * open_before, "it does not snap shut"
    finished = [e for e in player.events if isinstance(e, PlaybackFinished)]
    expected = {"arrived": {"a", "b"}, "anchored": {"a", "b"}, "mid-word": {"a", "b"}}.get(moment, {"a"})
    assert {e.utterance for e in finished} == expected and len(finished) == len(expected)
    for event in finished:
        if event.utterance in names:
            continue
        assert event.interrupted
        assert event.position_samples == (played * 960 if event.utterance == "a" else 0)
    assert player.timeline.buffered_ms == 0 and player.timeline.idle


@pytest.mark.parametrize("moment", MOMENTS)
def test_new_speech_right_after_a_cancel_is_said_whole(player, moment):
    bring_to(player, moment)
    player.timeline.cancel()
    mark = len(player.units) * SAMPLES_PER_FRAME
    pcm = speech(0.6, seed=9)
    player.say("a" if moment != "idle" else "new", pcm)  # the cancelled id may come again
    player.until_idle()
    heard = player.sound[mark:]
    loud = np.flatnonzero(heard)
    assert np.array_equal(heard[loud[0] : loud[-1] + 1], pcm)
    assert player.events[-1] == PlaybackFinished("a" if moment != "idle" else "new", len(pcm), False)


def test_no_picture_of_cancelled_speech_is_shown_afterwards(make_puppet):
    player = Player(make_puppet())
    player.say("a", speech(1.0))
    player.emit(LEAD + 4)
    player.until_late()
    job = player.take(PaintJob)
    shown = player.emit().image  # the picture of this frame is late
    player.finish(job)
    player.timeline.cancel()
    assert player.emit().image is shown  # a closing picture could not be painted yet


def test_a_picture_of_cancelled_speech_is_dropped_though_its_frame_was_asked_for_again(make_puppet):
    player = Player(make_puppet())
    player.say("a", speech(1.0))
    player.emit(LEAD + 4)
    player.until_late()
    old = player.take(PaintJob)
    player.timeline.cancel()
    new = player.take(PaintJob)
    assert new.due == old.due
    player.finish(old)
    assert not player.emit().fresh


def test_speech_takes_the_place_of_idle_pictures_made_ahead(make_puppet):
    player = Player(make_puppet(), lead=1)
    player.emit(5)
    player.say("a", speech(1.0))
    player.until_idle()
    assert all(unit.image[0, 0, 1] > 0 for unit in player.units if unit.speaking)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 24_000, 48_000])
def test_the_position_of_a_cancel_counts_at_the_utterances_own_rate(player, rate_hz):
    player.say("a", speech(1.0, rate_hz), rate_hz)
    player.emit(LEAD + 11)
    player.timeline.cancel()
    player.emit()
    assert player.events[-1] == PlaybackFinished("a", 11 * rate_hz // 25, True)


def test_what_arrives_for_a_cancelled_utterance_is_ignored(player):
    player.say("a", speech(1.0), end=False)
    player.emit(LEAD + 5)
    player.timeline.cancel()
    player.push("a", speech(1.0))
    player.timeline.end_utterance("a")
    mark = len(player.units)
    player.emit(40)
    assert not player.sound[mark * SAMPLES_PER_FRAME :].any() and player.timeline.idle
    assert len([e for e in player.events if isinstance(e, PlaybackFinished)]) == 1


def test_there_are_so_many_utterances_at_once_and_a_cancel_remembers_all_of_them(player):
    names = [str(i) for i in range(MAX_UTTERANCES)]
    for name in names:
        player.timeline.start_utterance(name, 48_000, 1)
    with pytest.raises(CapacityError, match="the limit is 64"):
        player.timeline.start_utterance("more", 48_000, 1)
    player.timeline.cancel()
    for name in names:
        player.push(name, speech(0.1))
        player.timeline.end_utterance(name)
    player.timeline.start_utterance("more", 48_000, 1)


# ---- pictures


def test_the_mouth_opens_and_closes_in_even_steps(player, opening_of):
    player.puppet.opening = 1.0
    player.say("a", speech(1.0))
    player.until_idle().emit(3)
    steps = np.diff(openings(player, opening_of))
    assert np.allclose(steps[steps > 1e-4], 1 / (CONFIG.attack_frames + 1))
    assert np.allclose(steps[steps < -1e-4], -1 / (CONFIG.crossfade_frames + 1))
    assert (steps > 1e-4).sum() == CONFIG.attack_frames + 1
    assert (steps < -1e-4).sum() == CONFIG.crossfade_frames + 1


def test_a_skipped_frame_repeats_the_last_picture_and_says_so(make_puppet):
    player = Player(make_puppet(), jobs_a_frame=0)
    player.say("a", speech(1.0))
    player.work(50)
    for _ in range(12):
        unit = player.emit()
        if unit.speaking:
            assert unit.fresh is (unit.index in player.painted)
        if not unit.fresh and unit.index:
            assert unit.image is player.units[-2].image
    assert not player.units[-1].fresh


def test_pictures_never_go_back_in_time(make_puppet):
    player = Player(make_puppet())
    player.say("a", speech(2.0))
    player.emit(LEAD + 4)
    player.until_late()
    slow = player.take(PaintJob)
    player.emit()
    quick = player.take(PaintJob)
    assert quick.due > slow.due
    player.finish(quick)
    while player.timeline.next_frame <= quick.due:
        player.emit()
    assert player.emit().image[0, 0, 0] == quick.frames[0].base
    player.finish(slow)
    assert player.emit().image[0, 0, 0] == quick.frames[0].base


@pytest.mark.parametrize("frames_a_picture", [1, 2, 3, 5, 9, 20])
def test_a_slow_painter_still_shows_pictures_at_its_own_rate(make_puppet, frames_a_picture):
    player = Player(make_puppet(), jobs_a_frame=0, lead=min(9, 1 + frames_a_picture))
    pcm = speech(8.0, 24_000)
    player.timeline.start_utterance("a", 24_000, 1)
    job, left = None, 0
    for n in range(260):
        player.push("a", pcm[n * 960 : (n + 1) * 960])
        while job is None or not left:
            if job is not None:
                player.finish(job)
            job = player.timeline.take(player.timeline.next_frame + frames_a_picture - 1, player.lead)
            if job is None:
                break
            left = frames_a_picture if job.stage == "best" else 0
        left = max(0, left - 1)
        player.emit()
    first, last = [next(u.index for u in order if u.speaking) for order in (player.units, player.units[::-1])]
    fresh = [u.index for u in player.units[first:last] if u.fresh]
    assert len(fresh) >= 0.9 * (last - first) / frames_a_picture - 2
    assert max(np.diff(fresh)) <= 2 * frames_a_picture
    assert np.array_equal(player.spoken(), at_48k(pcm, 24_000)[: len(player.spoken())])


def test_the_avatar_idles_through_its_loop_before_and_after_speech(player):
    player.emit(5)
    player.say("a", speech(0.5))
    player.until_idle().emit(60)
    assert [int(u.image[0, 0, 0]) for u in player.units[1:]] == [u.index % 50 for u in player.units[1:]]
    assert all(u.image[0, 0, 1] == -1 for u in itertools.chain(player.units[1:5], player.units[-30:]))
    assert all(u.fresh for u in player.units)


def test_memory_stays_bounded_over_a_long_utterance(make_puppet):
    pictures, segments = [], set()

    def watch(job, outcome):
        segments.add(job.segment) if isinstance(job, LipsJob) else pictures.append(weakref.ref(outcome[0]))

    player = Player(make_puppet(watch=watch))
    player.timeline.start_utterance("a", 16_000, 1)
    packet = speech(0.04, 16_000)
    for _ in range(1500):
        player.push("a", packet)
        player.emit()
        player.units[:-1] = [None] * (len(player.units) - 1)
    (segment,) = segments
    assert len(segment.lips) <= CONFIG.lead_frames + 4 and segment.buffered_samples < 48_000
    assert len(pictures) > 1000 and sum(picture() is not None for picture in pictures) <= CONFIG.lead_frames + 2


# ---- runs


@pytest.mark.parametrize("length_s", [0.96, 1.0, 1.04])
def test_at_half_the_rate_of_the_network_every_frame_still_has_its_own_picture(make_puppet, length_s):
    jobs, whole, half = [], Player(make_puppet()), Player(make_puppet(watch=lambda job, _: jobs.append(job)))
    half.pace = Pace("best-half")
    for player in (whole, half):
        player.say("a", speech(length_s))
        player.until_idle().emit(5)
    assert all(unit.fresh for unit in half.units)
    shown = [[unit.image[0, 0, :2].tolist() for unit in player.units] for player in (whole, half)]
    assert shown[0] == shown[1], "the same base frames and lips"
    runs = [job.frames for job in jobs if job.stage in ("best", "best-half")]
    assert [len(run) for run in runs[:-1]] == [2] * (len(runs) - 1) and len(runs[-1]) in (1, 2)
    assert all(second.due == first.due + 1 for first, second in (run for run in runs if len(run) == 2))


def test_a_cancel_in_a_run_drops_all_its_pictures(make_puppet):
    player = Player(make_puppet())
    player.pace = Pace("best-half")
    player.say("a", speech(1.0))
    player.emit(LEAD + 4)
    player.until_late()
    run = player.take(PaintJob)
    assert len(run.frames) == 2
    player.timeline.cancel()
    player.finish(run)
    assert not player.emit().fresh and not player.emit().fresh


# ---- idle pictures that are not decoded in time


@pytest.fixture
def decoded():
    """The idle pictures of a test, by base frame."""
    return {}


@pytest.fixture
def idling(make_puppet, decoded):
    """A player whose idle pictures are those in `decoded`."""
    player = Player(make_puppet())
    player.timeline = player.puppet.new_timeline(CONFIG, decoded.get)
    return player


def test_an_idle_picture_that_is_late_is_left_out(idling, decoded):
    decoded |= {0: np.zeros((1, 1, 3)), 2: np.ones((1, 1, 3))}
    units = [idling.emit() for _ in range(4)]
    assert [unit.fresh for unit in units] == [True, False, True, False]
    assert units[1].image is decoded[0] and units[3].image is decoded[2]


def test_an_idle_picture_replaces_the_late_picture_of_speech_that_has_ended(idling, decoded):
    idling.say("a", speech(0.2))
    idling.jobs_a_frame, late = 0, []
    while not idling.timeline.idle:
        late.append(idling.take(PaintJob))
        idling.emit()
    idling.finish(next(job for job in reversed(late) if job is not None))
    base = idling.timeline.next_frame
    decoded[base] = np.zeros((1, 1, 3))
    assert idling.emit().image is decoded[base] and not idling.emit().fresh


def test_idle_pictures_are_asked_for_where_there_is_no_speech(player):
    assert player.timeline.idle_frames == [(0, 0), (1, 1), (2, 2)]
    player.say("a", speech(0.5))
    player.work()
    assert [n for n, _ in player.timeline.idle_frames] == list(range(LEAD))
    player.emit(LEAD)
    assert player.timeline.idle_frames == []
    player.until_idle()
    first = player.timeline.next_frame
    assert [n for n, _ in player.timeline.idle_frames] == [first, first + 1, first + 2]

"""The pure part of a session: what is said and shown at every frame, whatever the sender and the machine do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.config import SessionConfig
from engine.errors import CapacityError, ProtocolError, SpeechFormatError
from engine.media import (
    SAMPLES_PER_FRAME,
    PcmResampler,
    PlaybackFinished,
    PlaybackStarted,
    float_to_pcm,
    pcm_to_float,
)
from engine.performer import finish
from engine.timeline import MAX_UTTERANCES, HearJob, PaintJob

CONFIG = SessionConfig()
LEAD = 3


def speech(seconds: float, rate_hz: int = 48_000, seed: int = 0) -> np.ndarray:
    """Noise that gets louder and softer: int16 [n]."""
    n = round(seconds * rate_hz)
    swell = 0.2 + 0.1 * np.sin(np.arange(n) / rate_hz * 20)
    return float_to_pcm((np.random.default_rng(seed).standard_normal(n) * swell * 0.5).astype(np.float32))


def at_48k(pcm: np.ndarray, rate_hz: int) -> np.ndarray:
    """What a listener should hear of it."""
    return float_to_pcm(PcmResampler(rate_hz, 48_000).push(pcm_to_float(pcm.tobytes(), 1), last=True))


class Player:
    """Drives a timeline frame by frame; `jobs_a_frame` bounds what the machine gets done between two frames."""

    def __init__(self, puppet, config=CONFIG, jobs_a_frame=1000, first_paint=0, lead=LEAD):
        self.puppet, self.timeline = puppet, puppet.new_timeline(config)
        self.jobs_a_frame, self.first_paint, self.lead = jobs_a_frame, first_paint, lead
        self.units, self.events = [], []

    def work(self, jobs=None):
        for _ in range(self.jobs_a_frame if jobs is None else jobs):
            job = self.timeline.next_job(self.timeline.next_frame + self.first_paint, self.lead)
            if job is None:
                return
            job = self.timeline.take(job)
            finish(self.timeline, job, self.puppet.perform(job), self.lead)

    def take(self, kind):
        """Begin the next job of that kind, with all others done before it."""
        while True:
            job = self.timeline.next_job(self.timeline.next_frame, self.lead)
            assert job is not None, f"no {kind.__name__} to do"
            job = self.timeline.take(job)
            if isinstance(job, kind) and (kind is HearJob or job.lips is not None):
                return job
            finish(self.timeline, job, self.puppet.perform(job), self.lead)

    def emit(self, frames=1):
        for _ in range(frames):
            self.work()
            unit, events = self.timeline.emit()
            assert len(unit.samples) == SAMPLES_PER_FRAME and unit.samples.dtype == np.int16
            assert unit.index == len(self.units)
            self.units.append(unit)
            self.events += events
        return self.units[-1]

    def until_idle(self, limit=3000):
        for _ in range(limit):
            if self.timeline.idle:
                return self
            self.emit()
        raise AssertionError("never idle")

    def say(self, name, pcm, rate_hz=48_000, chunk=None, end=True):
        self.timeline.start_utterance(name, rate_hz, 1)
        self.push(name, pcm, chunk)
        if end:
            self.timeline.end_utterance(name)

    def push(self, name, pcm, chunk=None):
        for i in range(0, len(pcm), chunk or max(1, len(pcm))):
            self.timeline.push_audio(name, pcm[i : i + (chunk or len(pcm))].tobytes())

    def send_in_real_time(self, name, pcm, rate_hz, packet_frames=1):
        """One packet whenever its sound is complete, a frame emitted every 40 ms; ends the utterance."""
        self.timeline.start_utterance(name, rate_hz, 1)
        size = rate_hz // 25 * packet_frames
        for i in range(0, len(pcm), size):
            self.emit(packet_frames)
            self.push(name, pcm[i : i + size])
        self.timeline.end_utterance(name)

    @property
    def sound(self):
        return np.concatenate([u.samples for u in self.units])

    def spoken(self):
        """All sound between the first and the last sample that is not silence."""
        loud = np.flatnonzero(self.sound)
        return self.sound[loud[0] : loud[-1] + 1] if len(loud) else self.sound[:0]


def openings(player, opening_of):
    return np.array([opening_of(u.image) for u in player.units])


@pytest.fixture
def player(make_puppet):
    return Player(make_puppet())


# ---- sound


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_the_sound_is_the_resampled_input_sample_for_sample(player, rate_hz):
    pcm = speech(1.23, rate_hz)
    player.say("a", pcm, rate_hz)
    player.until_idle()
    started = next(e for e in player.events if isinstance(e, PlaybackStarted))
    expected = at_48k(pcm, rate_hz)
    assert np.array_equal(player.sound[started.pts : started.pts + len(expected)], expected)
    assert not player.sound[: started.pts].any() and not player.sound[started.pts + len(expected) :].any()


@pytest.mark.parametrize("chunk", [1, 37, 480, 1000, 4801])
def test_any_chunking_gives_the_same_units(make_puppet, chunk):
    pcm = speech(0.9 if chunk > 1 else 0.35, 24_000)
    whole, cut_up = Player(make_puppet()), Player(make_puppet())
    whole.say("a", pcm, 24_000)
    cut_up.say("a", pcm, 24_000, chunk)
    whole.until_idle(), cut_up.until_idle()
    assert np.array_equal(whole.sound, cut_up.sound)
    assert [u.image.tolist() for u in whole.units] == [u.image.tolist() for u in cut_up.units]
    assert whole.events == cut_up.events


def test_a_live_sender_gets_the_same_sound_and_lips_as_a_file(make_puppet):
    pcm = speech(2.0, 16_000)
    live, file = Player(make_puppet()), Player(make_puppet())
    file.say("a", pcm, 16_000)
    file.until_idle()
    live.send_in_real_time("a", pcm, 16_000)
    live.until_idle()
    assert np.array_equal(live.spoken(), file.spoken())

    def lips(p):
        first = next(u.index for u in p.units if u.speaking)
        return [u.image[0, 0, 1] for u in p.units[first : first + 50]]

    assert lips(live) == lips(file)


@pytest.mark.parametrize("packet_frames", [1, 2, 3])
def test_a_sender_in_real_time_is_never_interrupted_by_silence(player, packet_frames):
    pcm = speech(6.0, 24_000)
    player.send_in_real_time("a", pcm, 24_000, packet_frames)
    player.until_idle()
    assert np.array_equal(player.spoken(), at_48k(pcm, 24_000))
    assert player.events[0].pts <= (7 + 4 + LEAD + packet_frames) * SAMPLES_PER_FRAME


def test_speech_that_is_there_begins_without_waiting_for_a_slow_sender(make_puppet):
    fast, slow = Player(make_puppet()), Player(make_puppet())
    fast.say("a", speech(2.0), end=False)
    slow.say("a", speech(0.3), end=False)
    fast.work(), slow.work()
    fast.emit(10), slow.emit(10)
    begin = [next(u.index for u in p.units if u.speaking) for p in (fast, slow)]
    assert begin[0] == LEAD and begin[0] < begin[1]


def test_utterances_are_played_one_after_the_other_without_a_gap(player):
    first, second = speech(0.5, seed=1), speech(0.77, 24_000, seed=2)
    player.say("a", first)
    player.say("b", second, 24_000)
    player.until_idle()
    assert np.array_equal(player.spoken(), np.concatenate([first, at_48k(second, 24_000)]))
    assert [type(e).__name__ + e.utterance for e in player.events] == [
        "PlaybackStarteda",
        "PlaybackFinisheda",
        "PlaybackStartedb",
        "PlaybackFinishedb",
    ]


def test_a_later_utterance_waits_until_the_earlier_one_has_ended(player):
    first, more, second = speech(0.5, seed=1), speech(0.4, seed=2), speech(0.5, seed=3)
    player.say("a", first, end=False)
    player.say("b", second)
    player.emit(5)
    player.push("a", more)
    player.timeline.end_utterance("a")
    player.until_idle()
    assert np.array_equal(player.spoken(), np.concatenate([first, more, second]))


@pytest.mark.parametrize("samples", [1, 100, 1919, 1920, 1921, 5 * 1920])
def test_an_utterance_shorter_than_a_step_is_said(player, samples):
    pcm = np.full(samples, 5000, np.int16)
    player.say("a", pcm)
    player.until_idle()
    assert np.array_equal(player.spoken(), pcm)
    assert [type(e) for e in player.events] == [PlaybackStarted, PlaybackFinished]
    assert player.events[1] == PlaybackFinished("a", samples, False)


def test_a_short_utterance_does_not_wait_for_the_next_ones_sound(player):
    player.say("a", speech(0.1))
    player.timeline.start_utterance("b", 16_000, 1)
    player.emit(20)
    assert PlaybackFinished("a", 4800, False) in player.events


def test_an_empty_utterance_finishes_in_its_turn_and_says_nothing(player):
    player.say("a", speech(0.5))
    player.say("none", np.zeros(0, np.int16))
    player.emit()
    player.until_idle()
    player.emit()
    assert [e for e in player.events if e.utterance == "none"] == [PlaybackFinished("none", 0, False)]
    assert [e for e in player.events if e.utterance == "a"][-1] == PlaybackFinished("a", 24_000, False)


def test_a_sender_that_stalls_gets_a_closed_mouth_and_then_goes_on(player, opening_of):
    pcm = speech(2.0, 24_000)
    half = 24_000
    player.say("a", pcm[:half], 24_000, end=False)
    player.emit(80)
    stalled = openings(player, opening_of)[-20:]
    assert stalled.max() == 0 and not any(u.speaking for u in player.units[-20:])
    assert not any(isinstance(e, PlaybackFinished) for e in player.events)
    player.push("a", pcm[half:])
    player.timeline.end_utterance("a")
    player.until_idle()
    expected = at_48k(pcm, 24_000)
    heard = player.sound
    cut_at = next(i for i in range(1, len(expected)) if not _contains(heard, expected[: i * 480])) * 480 - 480
    assert cut_at > 20_000 and _contains(heard, expected[cut_at + 480 :])
    assert [type(e) for e in player.events] == [PlaybackStarted, PlaybackFinished]
    assert player.events[1] == PlaybackFinished("a", len(pcm), False)


def _contains(sound, part):
    """Whether `part` occurs in `sound` as it is."""
    starts = np.flatnonzero(sound[: len(sound) - len(part) + 1] == part[0])
    return any(np.array_equal(sound[s : s + len(part)], part) for s in starts)


def test_an_end_that_comes_after_the_last_sound_was_played_finishes_at_once(player):
    player.say("a", speech(0.5), end=False)
    player.emit(60)
    player.timeline.end_utterance("a")
    speaking = len([u for u in player.units if u.speaking])
    player.emit()
    assert player.events[-1] == PlaybackFinished("a", 24_000, False)
    player.emit(20)
    assert len([u for u in player.units if u.speaking]) == speaking and player.timeline.idle


def test_sound_goes_on_unchanged_while_the_machine_does_nothing(player):
    pcm = speech(1.0, 24_000)
    player.say("a", pcm, 24_000)
    player.emit(6)
    player.jobs_a_frame = 0  # from here on not a job is done
    player.emit(40)
    assert _contains(player.sound, at_48k(pcm, 24_000))
    assert not any(u.fresh for u in player.units[-20:])
    player.jobs_a_frame = 1000
    player.until_idle()
    assert player.events[-1] == PlaybackFinished("a", len(pcm), False)


def test_a_line_that_runs_dry_in_the_middle_of_a_frame_is_filled_with_silence(player):
    pcm = np.full(20 * 1920 + 77, 3000, np.int16)
    player.say("a", pcm, end=False)
    player.emit(6)
    player.jobs_a_frame = 0
    player.emit(40)
    assert np.array_equal(player.spoken(), pcm)


# ---- what clients may not do


def test_sound_for_an_utterance_that_was_never_started_is_refused(player):
    with pytest.raises(ProtocolError, match=r"speech\.start"):
        player.timeline.push_audio("a", b"\0\0")
    with pytest.raises(ProtocolError):
        player.timeline.end_utterance("a")


def test_an_id_is_free_again_only_when_its_utterance_was_played(player):
    player.say("a", speech(0.5), end=False)
    with pytest.raises(ProtocolError, match="its own id"):
        player.timeline.start_utterance("a", 48_000, 1)
    player.timeline.end_utterance("a")
    player.emit(5)
    with pytest.raises(ProtocolError, match="its own id"):
        player.timeline.start_utterance("a", 48_000, 1)
    with pytest.raises(ProtocolError, match=r"speech\.start"):
        player.timeline.push_audio("a", b"\0\0")
    player.until_idle()
    player.say("a", speech(0.5))
    player.until_idle()
    assert [type(e) for e in player.events] == [PlaybackStarted, PlaybackFinished] * 2


@pytest.mark.parametrize(("rate_hz", "channels"), [(7_999, 1), (44_101, 1), (96_000, 1), (0, 1)])
def test_an_unknown_rate_is_refused_and_leaves_nothing_open(player, rate_hz, channels):
    with pytest.raises(SpeechFormatError, match="expected"):
        player.timeline.start_utterance("a", rate_hz, channels)
    assert player.timeline.idle


def test_more_than_two_channels_are_refused(player):
    with pytest.raises(SpeechFormatError, match="utterance 'a' has 3 channels.*mix it down"):
        player.timeline.start_utterance("a", 48_000, 3)


def test_half_a_sample_is_refused(player):
    player.timeline.start_utterance("a", 48_000, 2)
    with pytest.raises(SpeechFormatError, match="whole"):
        player.timeline.push_audio("a", b"\0" * 6)


def test_stereo_is_mixed(player):
    left = speech(0.5)
    player.timeline.start_utterance("a", 48_000, 2)
    player.timeline.push_audio("a", np.stack([left, left], 1).tobytes())
    player.timeline.end_utterance("a")
    player.until_idle()
    assert np.array_equal(player.spoken(), left)
    assert player.events[-1] == PlaybackFinished("a", len(left), False)


# ---- events


def test_the_start_is_exact_to_the_sample(player):
    player.say("a", speech(0.5)[:-7])
    player.say("b", speech(0.5, seed=2))
    player.until_idle()
    started = [e.pts for e in player.events if isinstance(e, PlaybackStarted)]
    assert started[0] % SAMPLES_PER_FRAME == 0 and started[1] == started[0] + 24_000 - 7
    assert player.sound[started[0]] and not player.sound[: started[0]].any()


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
@pytest.mark.parametrize("in_flight", [None, HearJob, PaintJob])
def test_a_cancel_silences_the_very_next_frame_and_closes_the_mouth(make_puppet, opening_of, moment, times, in_flight):
    player = Player(make_puppet())
    bring_to(player, moment)
    before = len(player.units)
    open_before = opening_of(player.units[-1].image) if player.units else 0.0
    names = {e.utterance for e in player.events if isinstance(e, PlaybackFinished)}
    job = None
    if in_flight is not None and moment in ("arrived", "anchored", "mid-word", "late-in-speech"):
        job = _begin(player, in_flight)
    played = sum(u.samples.any() for u in player.units)
    for _ in range(times):
        player.timeline.cancel()
    if job is not None:
        finish(player.timeline, job, player.puppet.perform(job), LEAD)
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


def _begin(player, kind):
    """Begin a job of that kind if there is one."""
    for _ in range(1000):
        job = player.timeline.next_job(player.timeline.next_frame, LEAD)
        if job is None:
            return None
        job = player.timeline.take(job)
        if isinstance(job, kind):
            return job
        finish(player.timeline, job, player.puppet.perform(job), LEAD)
    return None


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
    player.jobs_a_frame = 0
    while player.timeline.next_frame in player.timeline._pictures:
        player.emit()
    job = player.take(PaintJob)
    shown = player.emit().image  # the picture of this frame is late
    finish(player.timeline, job, player.puppet.perform(job), LEAD)
    player.timeline.cancel()
    assert player.emit().image is shown  # a closing picture could not be painted yet


def test_a_picture_of_cancelled_speech_is_dropped_though_its_frame_was_asked_for_again(make_puppet):
    player = Player(make_puppet())
    player.say("a", speech(1.0))
    player.emit(LEAD + 4)
    player.jobs_a_frame = 0
    while player.timeline.next_frame in player.timeline._pictures:
        player.emit()
    old = player.take(PaintJob)
    player.timeline.cancel()
    new = player.take(PaintJob)
    assert new.due == old.due
    finish(player.timeline, old, player.puppet.perform(old), LEAD)
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
    player.puppet.level = 1.0
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
        fresh_expected = player.timeline.next_frame in player.timeline._pictures
        unit = player.emit()
        assert unit.fresh is fresh_expected
        if not unit.fresh and unit.index:
            assert unit.image is player.units[-2].image


def test_pictures_never_go_back_in_time(make_puppet):
    player = Player(make_puppet())
    player.say("a", speech(2.0))
    player.emit(LEAD + 4)
    player.jobs_a_frame = 0
    while player.timeline.next_frame in player.timeline._pictures:
        player.emit()
    slow = player.take(PaintJob)
    player.emit()
    quick = player.take(PaintJob)
    assert quick.due > slow.due
    finish(player.timeline, quick, player.puppet.perform(quick), LEAD)
    while player.timeline.next_frame <= quick.due:
        player.emit()
    assert player.emit().image[0, 0, 0] == quick.base
    finish(player.timeline, slow, player.puppet.perform(slow), LEAD)
    assert player.emit().image[0, 0, 0] == quick.base


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
                finish(player.timeline, job, player.puppet.perform(job), player.lead)
            job = player.timeline.next_job(player.timeline.next_frame + frames_a_picture - 1, player.lead)
            if job is None:
                break
            job = player.timeline.take(job)
            left = frames_a_picture if isinstance(job, PaintJob) and job.lips is not None else 0
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


def test_memory_stays_bounded_over_a_long_utterance(player):
    player.timeline.start_utterance("a", 16_000, 1)
    packet = speech(0.04, 16_000)
    for _ in range(1500):
        player.push("a", packet)
        player.emit()
        player.units[:-1] = [None] * (len(player.units) - 1)
    (line,) = player.timeline._lines
    assert len(line.lips) <= CONFIG.lead_frames + 4 and line.buffered_samples < 48_000
    assert (
        len(player.timeline._pictures) <= CONFIG.lead_frames and len(player.timeline._asked) <= 3 * CONFIG.lead_frames
    )

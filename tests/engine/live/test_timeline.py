"""The pure part of a session: what is said and shown at every frame, whatever the sender and the machine do."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
from player import LEAD, Player, at_48k, openings, speech

from engine.audio import PcmResampler
from engine.errors import ProtocolError, SpeechFormatError
from engine.live.job import LipsJob
from engine.media import SAMPLES_PER_FRAME, PlaybackFinished, PlaybackStarted

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


def test_segments_are_played_one_after_the_other_in_whatever_order_workers_finish(player):
    player.say("a", speech(0.2))
    jobs = [player.take(LipsJob)]
    player.say("b", speech(0.2, seed=1))
    jobs.append(player.take(LipsJob))
    for job in reversed(jobs):
        if job is not None:
            player.finish(job)
    player.until_idle()
    assert [(e.utterance, type(e)) for e in player.events] == [
        (name, kind) for name in ("a", "b") for kind in (PlaybackStarted, PlaybackFinished)
    ]


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
    assert not any(u.fresh for u in [u for u in player.units if u.speaking][-10:])
    player.jobs_a_frame = 1000
    player.until_idle()
    assert player.events[-1] == PlaybackFinished("a", len(pcm), False)


def test_a_segment_that_runs_dry_in_the_middle_of_a_frame_is_filled_with_silence(player):
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


@contextlib.contextmanager
def resampling():
    """How many samples each call of a resampler gets, by the interpreter's profiler."""
    counts = []

    def look(frame, event, _):
        if event == "call" and frame.f_code is PcmResampler.push.__code__:
            counts.append(len(frame.f_locals["samples"]))

    sys.setprofile(look)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def test_speech_that_waited_is_resampled_step_by_step_when_its_turn_comes(player):
    """Counted, not timed: whatever one call resamples holds up the frames of all sessions."""
    player.timeline.start_utterance("open", 48_000, 1)
    player.push("open", speech(0.5))
    player.say("waiting", speech(29.0), chunk=24_000)
    with resampling() as counts:
        player.timeline.end_utterance("open")
        assert sum(counts) <= SAMPLES_PER_FRAME, "nothing yet: the networks have not asked for it"
        most = 0
        while not player.timeline.idle:
            counts.clear()
            while job := player.timeline.take(player.timeline.next_frame, player.lead):
                most = max(most, sum(counts))
                player.finish(job)
                counts.clear()
            player.timeline.emit()
            most = max(most, sum(counts))
    steps_at_most = 9  # frames: one step and its lookahead, and what the filter holds back
    assert 0 < most <= steps_at_most * SAMPLES_PER_FRAME

"""SpeechSegment: its steps, its sound, and the utterances that begin and end in each frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.audio import PcmResampler
from engine.live.segment import Utterance
from engine.media import SAMPLES_PER_FRAME, PlaybackFinished, PlaybackStarted
from engine.models.speech import FRAME_SAMPLES


def utterance(name="a", rate_hz=48_000):
    return Utterance(name, rate_hz, 1, PcmResampler(rate_hz, 48_000))


def frames(count, value=0.1):
    return np.full(count * SAMPLES_PER_FRAME, value, np.float32)


@pytest.fixture
def segment(make_puppet):
    return make_puppet().new_segment()


def step(segment):
    pcm = segment.begin_step()
    segment.finish_step(segment.speech, segment.geometry, torch.zeros(4, 1, 3))
    return pcm


def test_a_step_is_ready_as_soon_as_its_lookahead_is_there(segment):
    segment.append(utterance(), frames(7), last=False)
    assert not segment.step_ready  # the resampler holds back 3 ms
    segment.append(utterance(), np.zeros(144, np.float32), last=False)
    assert segment.step_ready
    assert len(step(segment)) == 7 * FRAME_SAMPLES
    assert not segment.step_ready and segment.made == 4
    segment.append(utterance(), frames(4), last=False)
    assert segment.step_ready and len(step(segment)) == 4 * FRAME_SAMPLES


def test_one_step_is_computed_at_a_time(segment):
    segment.append(utterance(), frames(30), last=False)
    segment.begin_step()
    assert not segment.step_ready


@pytest.mark.parametrize("samples", [1, 1919, 1920, 7 * 1920, 20 * 1920 + 5])
def test_a_closed_segment_has_steps_until_its_last_frame_and_no_further(segment, samples):
    segment.append(utterance(), np.full(samples, 0.1, np.float32), last=True)
    segment.close(8)
    assert segment.length == -(-samples // 1920) + 8
    while segment.step_ready:
        step(segment)
    assert segment.length <= segment.made < segment.length + 4


def test_a_segment_that_is_closed_while_it_plays_keeps_its_place(segment):
    segment.append(utterance(), frames(12), last=False)
    step(segment)
    for n in range(5):
        segment.take(n * 1920)
    segment.close(8)
    assert segment.length == 12 + 8
    taken = [segment.take(n * 1920)[0] for n in range(5, 20)]
    assert np.concatenate(taken)[: 7 * 1920].all() and not np.concatenate(taken)[7 * 1920 :].any()


def test_lips_of_frames_that_are_gone_are_not_kept(segment):
    segment.append(utterance(), frames(20), last=False)
    step(segment)
    for n in range(6):
        segment.take(n * 1920)
    step(segment)
    assert sorted(segment.lips) == [6, 7]


def test_begin_and_end_within_one_frame(segment):
    first, second, third = utterance("a"), utterance("b"), utterance("c", 16_000)
    for u, n in ((first, 100), (second, 50), (third, 1770)):
        u.received_samples = n * u.sample_rate_hz // 48_000
        segment.append(u, np.full(n, 0.1, np.float32), last=True)
    _, speaking, events = segment.take(19_200)
    assert speaking and events == [
        PlaybackStarted("a", 19_200),
        PlaybackFinished("a", 100, False),
        PlaybackStarted("b", 19_300),
        PlaybackFinished("b", 50, False),
        PlaybackStarted("c", 19_350),
        PlaybackFinished("c", 590, False),
    ]
    assert segment.utterances == []


def test_an_end_without_sound_is_told_with_the_last_sound_that_is_left(segment):
    u = utterance()
    u.received_samples = 1920
    segment.append(u, frames(1), last=False)
    assert segment.end(u) and not segment.end(utterance("other"))
    assert segment.take(0)[2] == [PlaybackStarted("a", 0), PlaybackFinished("a", 1920, False)]
    assert not segment.end(u)


def test_the_position_never_exceeds_what_was_received():
    u = utterance(rate_hz=11_025)
    u.received_samples, u.played_samples = 441, 1921
    assert u.position_samples == 441
    u.played_samples = 960
    assert u.position_samples == 220

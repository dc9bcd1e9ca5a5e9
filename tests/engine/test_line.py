"""Line: what is heard of it, what its sound is, and what begins and ends in which frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.line import Utterance
from engine.media import SAMPLES_PER_FRAME, PcmResampler, PlaybackFinished, PlaybackStarted
from engine.models.speech import FRAME_SAMPLES


def utterance(name="a", rate_hz=48_000):
    return Utterance(name, rate_hz, 1, PcmResampler(rate_hz, 48_000))


def frames(count, value=0.1):
    return np.full(count * SAMPLES_PER_FRAME, value, np.float32)


@pytest.fixture
def line(make_puppet):
    return make_puppet().new_line()


def hear(line):
    pcm = line.hear()
    line.heard(line.speech, line.geometry, torch.zeros(4, 1, 3))
    return pcm


def test_a_step_is_heard_as_soon_as_its_lookahead_is_there(line):
    line.append(utterance(), frames(7), last=False)
    assert not line.can_hear  # the resampler holds back 3 ms
    line.append(utterance(), np.zeros(144, np.float32), last=False)
    assert line.can_hear
    assert len(hear(line)) == 7 * FRAME_SAMPLES
    assert not line.can_hear and line.made == 4
    line.append(utterance(), frames(4), last=False)
    assert line.can_hear and len(hear(line)) == 4 * FRAME_SAMPLES


def test_one_step_at_a_time_is_heard(line):
    line.append(utterance(), frames(30), last=False)
    line.hear()
    assert not line.can_hear


@pytest.mark.parametrize("samples", [1, 1919, 1920, 7 * 1920, 20 * 1920 + 5])
def test_a_closed_line_hears_until_its_last_frame_and_no_further(line, samples):
    line.append(utterance(), np.full(samples, 0.1, np.float32), last=True)
    line.close(8)
    assert line.length == -(-samples // 1920) + 8
    while line.can_hear:
        hear(line)
    assert line.length <= line.made < line.length + 4


def test_a_line_that_is_closed_while_it_plays_keeps_its_place(line):
    line.append(utterance(), frames(12), last=False)
    hear(line)
    for n in range(5):
        line.take(n * 1920)
    line.close(8)
    assert line.length == 12 + 8
    taken = [line.take(n * 1920)[0] for n in range(5, 20)]
    assert np.concatenate(taken)[: 7 * 1920].all() and not np.concatenate(taken)[7 * 1920 :].any()


def test_lips_of_frames_that_are_gone_are_not_kept(line):
    line.append(utterance(), frames(20), last=False)
    hear(line)
    for n in range(6):
        line.take(n * 1920)
    hear(line)
    assert sorted(line.lips) == [6, 7]


def test_begin_and_end_within_one_frame(line):
    first, second, third = utterance("a"), utterance("b"), utterance("c", 16_000)
    for u, n in ((first, 100), (second, 50), (third, 1770)):
        u.received_samples = n * u.sample_rate_hz // 48_000
        line.append(u, np.full(n, 0.1, np.float32), last=True)
    _, speaking, events = line.take(19_200)
    assert speaking and events == [
        PlaybackStarted("a", 19_200),
        PlaybackFinished("a", 100, False),
        PlaybackStarted("b", 19_300),
        PlaybackFinished("b", 50, False),
        PlaybackStarted("c", 19_350),
        PlaybackFinished("c", 590, False),
    ]
    assert line.utterances == []


def test_an_end_without_sound_is_told_with_the_last_sound_that_is_left(line):
    u = utterance()
    u.received_samples = 1920
    line.append(u, frames(1), last=False)
    assert line.end(u) and not line.end(utterance("other"))
    assert line.take(0)[2] == [PlaybackStarted("a", 0), PlaybackFinished("a", 1920, False)]
    assert not line.end(u)


def test_the_position_never_exceeds_what_was_received():
    u = utterance(rate_hz=11_025)
    u.received_samples, u.played_samples = 441, 1921
    assert u.position_samples == 441
    u.played_samples = 960
    assert u.position_samples == 220

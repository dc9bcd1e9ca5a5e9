"""Sound between rates and formats: the same samples however it is cut, each in its place."""

from __future__ import annotations

import numpy as np
import pytest

from engine.audio import SOURCE_RATES_HZ, PcmResampler, SampleQueue, float_to_pcm, pcm_to_float
from engine.errors import SpeechFormatError
from engine.media import frame_pts

PAIRS = [(rate, 48_000) for rate in SOURCE_RATES_HZ] + [(48_000, 16_000)]


def noise(samples, seed=0):
    return (np.random.default_rng(seed).standard_normal(samples) * 0.2).astype(np.float32)


def resampled(x, source_hz, target_hz):
    return PcmResampler(source_hz, target_hz).push(x, last=True)


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
@pytest.mark.parametrize("largest", [3, 200, 3000])
def test_any_chunking_gives_the_same_bits(source_hz, target_hz, largest):
    x = noise(source_hz // 4 + 17)
    resampler, rng, out, i = PcmResampler(source_hz, target_hz), np.random.default_rng(1), [], 0
    while i < len(x):
        n = int(rng.integers(0, largest + 1))
        out.append(resampler.push(x[i : i + n]))
        i += n
    out.append(resampler.push(x[:0], last=True))
    assert np.array_equal(np.concatenate(out), resampled(x, source_hz, target_hz))


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
@pytest.mark.parametrize("samples", [0, 1, 2, 160, 1601])
def test_the_length_is_that_of_the_sound(source_hz, target_hz, samples):
    out = resampled(noise(samples), source_hz, target_hz)
    assert out.dtype == np.float32 and len(out) == -(-samples * target_hz // source_hz)


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
def test_a_click_stays_in_its_place(source_hz, target_hz):
    x = np.zeros(source_hz, np.float32)
    for place in (0, source_hz // 2, source_hz - 1):
        x[:] = 0
        x[place] = 1
        found = int(np.abs(resampled(x, source_hz, target_hz)).argmax())
        assert abs(found - place * target_hz / source_hz) <= 1


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
def test_a_tone_is_the_same_tone(source_hz, target_hz):
    tone = lambda rate: (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate // 2) / rate)).astype(np.float32)  # noqa: E731
    out, inner = resampled(tone(source_hz), source_hz, target_hz), slice(1000, -1000)
    assert np.abs(out[: target_hz // 2] - tone(target_hz)[: len(out)])[inner].max() < 1e-4


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
def test_silence_stays_silence_and_a_constant_stays_that_constant(source_hz, target_hz):
    assert not resampled(np.zeros(source_hz, np.float32), source_hz, target_hz).any()
    out = resampled(np.full(source_hz // 4, 0.5, np.float32), source_hz, target_hz)
    assert np.abs(out[500:-500] - 0.5).max() < 1e-6


def test_what_the_lower_rate_cannot_hold_is_not_folded_back():
    high = np.sin(2 * np.pi * 9_000 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(resampled(high, 48_000, 16_000))[1000:-1000].max() < 1e-3


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
def test_it_holds_back_48_samples_of_the_lower_rate(source_hz, target_hz):
    resampler, held_s = PcmResampler(source_hz, target_hz), []
    pushed = made = 0
    for _ in range(100):
        made += len(resampler.push(noise(source_hz // 100)))
        pushed += source_hz // 100
        held_s.append(pushed / source_hz - made / target_hz)
    assert max(held_s) <= 48 / min(source_hz, target_hz) + 1 / target_hz


@pytest.mark.parametrize("rate_hz", [0, -16_000, 7_999, 44_099, 96_000])
def test_an_unknown_rate_is_refused(rate_hz):
    with pytest.raises(SpeechFormatError, match=f"{rate_hz} Hz; expected one of 8000"):
        PcmResampler(rate_hz, 48_000)


def test_samples_leave_the_queue_in_order_whatever_is_taken():
    queue, x, rng, taken = SampleQueue(), noise(5000), np.random.default_rng(0), []
    for part in np.split(x, [0, 3, 700, 700, 2500, 4999]):
        queue.append(part)
        taken.append(queue.take(int(rng.integers(0, len(queue) + 1))))
    left = len(queue)
    taken.append(queue.take())
    assert len(taken[-1]) == left and len(queue) == 0 and len(queue.take()) == 0
    assert np.array_equal(np.concatenate(taken), x)


def test_every_int16_survives_the_way_through_floats():
    every = np.arange(-32768, 32768).astype("<i2")
    assert np.array_equal(float_to_pcm(pcm_to_float(every.tobytes(), 1)), every)


def test_what_is_too_loud_is_clipped():
    assert float_to_pcm(np.array([1.5, -1.5, 1.0], np.float32)).tolist() == [32767, -32768, 32767]


def test_stereo_becomes_the_mean_of_both_sides():
    pcm = np.array([[100, 300], [-32768, -32768]], "<i2")
    assert (pcm_to_float(pcm.tobytes(), 2) * 32768).tolist() == [200, -32768]


@pytest.mark.parametrize(("size", "channels"), [(1, 1), (2, 2), (6, 2), (4, 0), (12, 6)])
def test_half_samples_and_odd_channels_are_refused(size, channels):
    with pytest.raises(SpeechFormatError, match="expected whole s16le samples"):
        pcm_to_float(b"\0" * size, channels)


def test_media_time_is_exact_after_a_day():
    assert frame_pts(25 * 86_400) == 48_000 * 86_400

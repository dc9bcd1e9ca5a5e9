"""The output's sound: the speech at its place, and the original around it or under it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from drawings import times_of, write_wave

from precompute.dubbing.soundtrack import Original, Soundtrack
from precompute.dubbing.timing import plan


@pytest.fixture
def tone(tmp_path):
    """tone(seconds, rate_hz, level, channels): a constant level, by which a place in the mix is recognised."""

    def make(seconds, rate_hz=16_000, level=0.25, channels=1):
        shape = (round(seconds * rate_hz), channels) if channels > 1 else round(seconds * rate_hz)
        return write_wave(tmp_path / f"{level}-{channels}-{rate_hz}.wav", np.full(shape, level), rate_hz)

    return make


def whole(track):
    return np.concatenate(list(track.blocks()))


def levels(samples, rate_hz, *times_s):
    return [round(float(samples[round(time_s * rate_hz), 0]), 2) for time_s in times_s]


def test_speech_alone_keeps_its_rate_and_channels_and_is_followed_by_silence(tone):
    track = Soundtrack(
        [tone(1.0, 22_050, channels=2)], plan(times_of(100), "video", speech_s=1.0), suffix=".mp4", original=None
    )
    samples = whole(track)
    assert (track.codec, track.rate_hz, track.layout) == ("aac", 22_050, "stereo")
    assert samples.shape == (4 * 22_050, 2) and samples.dtype == np.float32
    assert np.abs(samples[:22_050] - 0.25).max() < 1e-4 and not samples[22_050:].any()


def test_speech_alone_is_the_files_own_samples(tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.integers(-20_000, 20_000, 16_000) / 32_767
    speech = write_wave(tmp_path / "noise.wav", noise, 16_000)
    samples = whole(Soundtrack([speech], plan(times_of(25), "video", speech_s=1.0), suffix=".mkv", original=None))
    assert np.array_equal(np.rint(samples[:, 0] * 32_768), np.rint(noise * 32_767))


@pytest.mark.parametrize(
    ("suffix", "codec", "rate_hz"), [(".mp4", "aac", 44_100), (".mkv", "flac", 44_100), (".webm", "libopus", 48_000)]
)
def test_the_codec_is_one_of_the_container(tone, suffix, codec, rate_hz):
    track = Soundtrack([tone(1, 44_100)], plan(times_of(25), "video", speech_s=1.0), suffix=suffix, original=None)
    assert (track.codec, track.rate_hz) == (codec, rate_hz)


def test_a_rate_that_aac_lacks_becomes_48_khz(tone):
    track = Soundtrack([tone(1, 40_000)], plan(times_of(25), "video", speech_s=1.0), suffix=".mp4", original=None)
    assert track.rate_hz == 48_000 and len(whole(track)) == 48_000


def test_around_the_passage_the_original_sounds_and_in_it_the_speech_alone(tone):
    made = plan(times_of(100), "video", speech_s=0.5, from_s=1.0, to_s=2.0)
    original = Original(tone(4.0, 48_000, 0.5, 2), Fraction(0))
    track = Soundtrack([tone(0.5)], made, suffix=".mp4", original=original)
    samples = whole(track)
    assert (track.rate_hz, track.layout) == (48_000, "stereo")
    assert len(samples) == 4 * 48_000
    assert levels(samples, 48_000, 0.5, 0.99, 1.25, 1.75, 2.01, 3.5) == [0.5, 0.5, 0.25, 0, 0.5, 0.5]
    assert np.abs(np.diff(samples[48_100:48_900, 0])).max() < 0.01  # fades, no click


@pytest.mark.parametrize("mix_db", [12.0, -12.0])
def test_mix_lowers_the_original_under_the_speech(tone, mix_db):
    made = plan(times_of(100), "video", speech_s=2.0)
    track = Soundtrack(
        [tone(2.0)], made, suffix=".mp4", original=Original(tone(4.0, 48_000, 0.5, 2), Fraction(0)), mix_db=mix_db
    )
    assert levels(whole(track), 48_000, 1.0, 3.0) == [round(0.25 + 0.5 * 0.251, 2), round(0.5 * 0.251, 2)]


def test_sound_of_six_channels_stays_and_speech_is_in_the_centre(tone):
    made = plan(times_of(50), "video", speech_s=1.0)
    track = Soundtrack(
        [tone(1.0)], made, suffix=".mp4", original=Original(tone(2.0, 48_000, 0.5, 6), Fraction(0)), mix_db=20.0
    )
    samples = whole(track)
    assert track.layout == "5.1"
    assert samples[24_000] == pytest.approx([0.05, 0.05, 0.3, 0.05, 0.05, 0.05], abs=0.01)


@pytest.mark.parametrize("at_s", [-0.5, 0.0, 0.3])
def test_original_sound_keeps_its_place_by_the_first_picture(tone, at_s):
    """It begins before or behind the pictures; the output begins `lead_s` before the first one."""
    made = plan(times_of(100), "video", speech_s=0.5, from_s=2.0, to_s=3.0)
    lead_s = Fraction(max(0, -at_s)).limit_denominator()
    original = Original(tone(1.0, 48_000, 0.5), Fraction(at_s).limit_denominator())
    track = Soundtrack([tone(0.5)], made, suffix=".mp4", original=original, lead_s=lead_s)
    samples = whole(track)[:, 0]
    assert len(samples) == round((4 + lead_s) * 48_000)
    begin_s = at_s + lead_s
    sounding = np.flatnonzero(np.abs(samples[: 2 * 48_000 - 100]) > 0.25)
    assert sounding[0] / 48_000 == pytest.approx(begin_s, abs=1e-3)
    assert sounding[-1] / 48_000 == pytest.approx(begin_s + 1, abs=1e-3)
    speech = np.flatnonzero(np.abs(samples[round((1.7 + lead_s) * 48_000) :]) > 0.2)
    assert speech[0] / 48_000 == pytest.approx(0.3, abs=1e-3)


def test_several_speeches_are_summed_without_clipping(tone):
    made = plan(times_of(50), "video", speech_s=2.0)
    track = Soundtrack([tone(2.0, level=0.25), tone(1.0, level=0.5, channels=2)], made, suffix=".mp4", original=None)
    samples = whole(track)
    assert track.layout == "stereo" and len(samples) == 2 * 16_000
    assert levels(samples, 16_000, 0.5, 1.5) == [0.75, 0.25]
    loud = Soundtrack([tone(2.0, level=0.9), tone(2.0, level=0.8)], made, suffix=".mp4", original=None)
    assert np.abs(whole(loud)).max() <= 1.0


def test_the_sound_is_cut_with_the_pictures(tone):
    track = Soundtrack([tone(9.0)], plan(times_of(50), "cut", speech_s=9.0), suffix=".mp4", original=None)
    assert len(whole(track)) == 2 * 16_000


def test_speech_ends_with_its_passage(tone):
    made = plan(times_of(100), "cut", speech_s=9.0, from_s=1.0, to_s=2.0)
    samples = whole(Soundtrack([tone(9.0)], made, suffix=".mp4", original=None))
    assert levels(samples, 16_000, 0.99, 1.01, 1.99) == [0, 0.25, 0.25] and len(samples) == 2 * 16_000


def test_the_original_behind_a_repeated_passage_follows_it(tmp_path, tone):
    ramp = write_wave(tmp_path / "ramp.wav", np.arange(4 * 48_000) / (8 * 48_000), 48_000)
    made = plan(times_of(100), "loop", speech_s=3.0, from_s=1.0, to_s=2.0)
    samples = whole(Soundtrack([tone(3.0)], made, suffix=".mp4", original=Original(ramp, Fraction(0))))
    assert len(samples) == 6 * 48_000
    assert samples[[24_000, 5 * 48_000 + 24_000], 0] == pytest.approx([0.0625, 0.4375], abs=1e-3)

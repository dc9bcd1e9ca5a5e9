"""The encoders of a viewer, decoded again: colours, time stamps, key frames, bitrate, and sound in its place."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from streaming.encoders import PictureEncoder, SoundEncoder
from streaming.tracks import SOUND_TIME_BASE, VIDEO_TIME_BASE

BITRATE_BPS = 1_000_000


def picture(index, image):
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts, frame.time_base = 3_600 * index, VIDEO_TIME_BASE
    return frame


def noise(seed, side=256):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("colour", [(224, 172, 140), (60, 80, 120), (250, 250, 250), (10, 10, 10), (180, 40, 50)])
def test_colours_survive(colour):
    encoder, decoder = PictureEncoder(BITRATE_BPS), av.CodecContext.create("h264", "r")
    image = np.full((128, 128, 3), colour, np.uint8)
    decoded = []
    for index in range(3):
        units = encoder._encode_frame(picture(index, image), False)
        decoded += decoder.decode(av.Packet(b"".join(b"\0\0\0\1" + unit for unit in units)))
    assert decoded[-1].colorspace == Colorspace.ITU709
    found = decoded[-1].reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray()
    assert np.abs(found[64, 64].astype(int) - colour).max() <= 3


def test_time_stamps_are_those_of_the_pictures():
    encoder = PictureEncoder(BITRATE_BPS)
    for index in (0, 1, 2, 5, 6):  # a slow viewer lost two
        payloads, stamp = encoder.encode(picture(index, noise(index)))
        assert payloads and stamp == 3_600 * index


def nal_types(encoder, index, *, force=False):
    return {unit[0] & 31 for unit in encoder._encode_frame(picture(index, noise(index)), force)}


def test_key_frames_come_first_and_on_demand_alone():
    encoder = PictureEncoder(BITRATE_BPS)
    assert 5 in nal_types(encoder, 0)
    assert all(5 not in nal_types(encoder, index) for index in range(1, 20))
    assert {5, 7, 8} <= nal_types(encoder, 20, force=True), "with parameter sets, so that a newcomer can decode"


def test_bitrate_follows_the_link_without_key_frames():
    encoder = PictureEncoder(BITRATE_BPS)

    def bits_per_s(start):
        sizes = [sum(map(len, encoder.encode(picture(start + i, noise(start + i)))[0])) for i in range(50)]
        return 8 * sum(sizes[25:])

    high = bits_per_s(0)
    encoder.target_bitrate = 300_000
    low = bits_per_s(50)
    encoder.target_bitrate = 50_000_000
    assert encoder.target_bitrate == BITRATE_BPS, "never above what the configuration allows"
    assert low < 0.6 * high
    assert 5 not in nal_types(encoder, 100)


def test_sound_keeps_its_place():
    encoder, decoder = SoundEncoder(), av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.format, decoder.layout = 48_000, "s16", "mono"
    samples = np.zeros(48_000, np.int16)
    samples[24_000:24_480] = 12_000 * np.sin(np.arange(480) / 8)
    first, found = None, []
    for start in range(0, len(samples), 960):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="s16", layout="mono")
        frame.pts, frame.time_base, frame.sample_rate = 96_000 + start, SOUND_TIME_BASE, 48_000
        (payload,), stamp = encoder.encode(frame)
        first = stamp if first is None else first
        packet = av.Packet(payload)
        packet.time_base = Fraction(1, 48_000)
        found += [decoded.to_ndarray().ravel()[:: decoded.layout.nb_channels] for decoded in decoder.decode(packet)]
    heard = np.concatenate(found).astype(int)
    onset = first + int(np.flatnonzero(np.abs(heard) > 3_000)[0])
    assert abs(onset - (96_000 + 24_000)) < 0.003 * 48_000

"""The encoders of a session, decoded again: colours, time stamps, key frames, bitrate, and sound in its place."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from engine.errors import SettingError
from streaming.config import EncoderConfig
from streaming.publish.encoders import (
    PictureConverter,
    PictureEncoder,
    SoundCodec,
    SoundEncoder,
    VideoCodec,
    check_encoder,
)

CONFIG = EncoderConfig(codec="libx264", bitrate_bps=1_000_000)
NEVER = EncoderConfig(codec="libx264", bitrate_bps=1_000_000, keyframe_interval_s=1_000, keyframe_gap_s=0)
BOTH = pytest.mark.parametrize("codec", list(VideoCodec))
DECODERS = {VideoCodec.H264: "h264", VideoCodec.VP8: "libvpx"}


def noise(seed, side=256):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def encode(encoder, index, image=None):
    return encoder.encode(PictureConverter(CONFIG).convert(noise(index) if image is None else image), index)


@BOTH
@pytest.mark.parametrize("colour", [(224, 172, 140), (60, 80, 120), (250, 250, 250), (10, 10, 10), (180, 40, 50)])
def test_colours_survive(codec, colour):
    encoder, decoder = PictureEncoder(codec, CONFIG), av.CodecContext.create(DECODERS[codec], "r")
    image = np.full((128, 128, 3), colour, np.uint8)
    decoded = []
    for index in range(3):
        decoded += decoder.decode(av.Packet(encode(encoder, index, image).data))
    assert codec is VideoCodec.VP8 or decoded[-1].colorspace == Colorspace.ITU709  # VP8 cannot say it
    found = decoded[-1].reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray()
    assert np.abs(found[64, 64].astype(int) - colour).max() <= 3


def test_the_picture_is_scaled_to_the_configured_height():
    planes = PictureConverter(EncoderConfig(height_px=361)).convert(np.zeros((720, 1280, 3), np.uint8))
    assert (planes.width, planes.height) == (642, 360), "even, as the codecs need it"


def test_a_repeated_picture_is_converted_once_and_another_one_anew():
    converter, images = PictureConverter(CONFIG), [noise(0), noise(1)]
    first = converter.convert(images[0])
    kept = first.to_ndarray()
    assert converter.convert(images[0]) is first
    other = converter.convert(images[1])
    assert np.abs(other.to_ndarray().astype(int) - kept).mean() > 10
    assert (first.to_ndarray() == kept).all(), "an encoder may still read it"
    assert (converter.convert(images[0]).to_ndarray() == kept).all()


@BOTH
def test_key_frames_come_first_in_time_and_on_demand(codec):
    encoder = PictureEncoder(codec, EncoderConfig(codec="libx264", keyframe_interval_s=2.0, keyframe_gap_s=0.4))
    keys = []
    for index in range(120):
        if index == 70:
            encoder.request_keyframe()
        if encode(encoder, index).keyframe:
            keys.append(index)
    assert keys == [0, 50, 70]


@BOTH
def test_a_storm_of_requests_makes_one_key_frame_a_gap(codec):
    encoder = PictureEncoder(codec, EncoderConfig(codec="libx264", keyframe_gap_s=0.4))
    keys = []
    for index in range(31):
        for _ in range(50):
            encoder.request_keyframe()
        if encode(encoder, index).keyframe:
            keys.append(index)
    assert keys == [0, 10, 20, 30]


def test_a_key_frame_is_all_that_a_newcomer_needs():
    encoder = PictureEncoder(VideoCodec.H264, NEVER)
    for index in range(5):
        encode(encoder, index)
    encoder.request_keyframe()
    picture, decoder = encode(encoder, 5), av.CodecContext.create("h264", "r")
    assert picture.keyframe
    frames = decoder.decode(av.Packet(picture.data)) + decoder.decode(None)
    assert len(frames) == 1 and frames[0].width == 256


def test_bitrate_follows_the_link_without_key_frames():
    encoder = PictureEncoder(VideoCodec.H264, NEVER)

    def bits_per_s(start):
        pictures = [encode(encoder, start + index) for index in range(50)]
        assert not any(picture.keyframe for picture in pictures[1:])
        return 8 * sum(len(picture.data) for picture in pictures[25:])

    high = bits_per_s(0)
    encoder.bitrate_bps = 300_000
    assert bits_per_s(50) < 0.6 * high


def test_vp8_takes_a_new_bitrate_with_its_next_key_frame():
    encoder = PictureEncoder(VideoCodec.VP8, EncoderConfig(keyframe_interval_s=2.0))
    sizes, keys = [], []
    for index in range(150):
        if index == 25:
            encoder.bitrate_bps = 300_000
        picture = encode(encoder, index, noise(index, 128))
        sizes.append(len(picture.data))
        keys += [index] * picture.keyframe
    assert keys == [0, 50, 100]
    assert sum(sizes[110:150]) < 0.7 * sum(sizes[10:50])


@pytest.mark.parametrize(
    "wrong", [{"bitrate_bps": 0}, {"height_px": 0}, {"keyframe_interval_s": 0.0}, {"opus_bitrate_bps": 10**6}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        check_encoder(EncoderConfig(**wrong))
    check_encoder(EncoderConfig())


def heard(codec, packets):
    """The decoded sound: the first sample's pts, and the samples of one channel."""
    decoder = av.CodecContext.create({SoundCodec.OPUS: "libopus", SoundCodec.AAC: "aac"}[codec], "r")
    if codec is SoundCodec.OPUS:
        decoder.sample_rate, decoder.format, decoder.layout = 48_000, "s16", "mono"
    else:
        decoder.sample_rate, decoder.extradata = 48_000, b"\x11\x90"  # AAC-LC, 48 kHz, stereo
    found = []
    for sound in packets:
        packet = av.Packet(sound.data)
        packet.pts, packet.time_base = sound.pts, Fraction(1, 48_000)
        for frame in decoder.decode(packet):
            samples = frame.to_ndarray()
            channel = samples[0] if frame.format.is_planar else samples.ravel()[:: frame.layout.nb_channels]
            found.append(channel.astype(np.float64) * (1 if frame.format.name == "s16" else 32_768))
    return packets[0].pts, np.concatenate(found)


@pytest.mark.parametrize("codec", list(SoundCodec))
@pytest.mark.parametrize("lost", [(), (3, 4, 5)])
def test_sound_keeps_its_place(codec, lost):
    encoder, packets = SoundEncoder(codec, CONFIG), []
    samples = np.zeros(25 * 1_920, np.int16)
    samples[24_000:24_480] = 12_000 * np.sin(np.arange(480) / 8)
    for index, unit in enumerate(samples.reshape(25, 1_920)):
        if index not in lost:
            packets += encoder.encode(unit, 96_000 + 1_920 * index)
    steps = np.diff([packet.pts for packet in packets])
    assert set(steps) == {960 if codec is SoundCodec.OPUS else 1_024}, "without holes, also where units were lost"
    first, sound = heard(codec, packets)
    onset = first + int(np.flatnonzero(np.abs(sound) > 3_000)[0])
    assert abs(onset - (96_000 + 24_000)) < 0.003 * 48_000

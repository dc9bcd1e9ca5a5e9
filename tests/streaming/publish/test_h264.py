"""The choice of the H.264 encoder: hardware that works, else x264. Encoders that fail do so for real."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import av
import numpy as np
import pytest

from engine.errors import SettingError
from streaming.config import EncoderConfig
from streaming.publish import h264
from streaming.publish.encoders import PictureConverter, PictureEncoder, VideoCodec

WORKING = [name for name in h264.HARDWARE if h264.fault(name) is None]
NO_GPU = not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dri").exists()


@pytest.mark.skipif(bool(WORKING), reason=f"this machine has {WORKING}")
def test_without_hardware_x264_encodes():
    assert h264.choose(EncoderConfig()) == "libx264"


@pytest.mark.parametrize("name", h264.HARDWARE)
@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_a_hardware_encoder_that_does_not_work_here_is_refused_with_the_remedy(name):
    with pytest.raises(SettingError, match=rf"{name} does not work here \(.+\); it needs .+: choose .*libx264"):
        h264.choose(EncoderConfig(codec=name))


def test_x264_passes_the_trial_that_hardware_has_to_pass():
    assert h264.fault("libx264") is None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"tune": "", "preset": "veryfast"}, "it holds pictures back"),
        ({"x264-params": "keyint=1"}, "it ignores requests for key frames"),
        ({"flags": "+global_header"}, "its key frames do not decode alone"),
    ],
)
def test_the_trial_finds_encoders_that_live_video_cannot_use(options, fault):
    context = h264.create("libx264", h264.TRIAL_PX, h264.TRIAL_PX, 1_000_000)
    context.options = dict(context.options) | options
    assert h264.trial(context) == fault


def test_an_encoder_that_pyav_lacks_is_a_fault_and_no_crash():
    assert h264.fault("h264_of_nobody") is not None


def test_every_hardware_encoder_can_be_named_in_the_configuration():
    assert set(get_args(get_type_hints(EncoderConfig)["codec"])) == {"auto", h264.SOFTWARE, *h264.HARDWARE}


@pytest.mark.parametrize("name", [h264.SOFTWARE, *WORKING])
def test_every_encoder_that_works_here_makes_key_frames_on_demand(name):
    config = EncoderConfig(codec=name, keyframe_gap_s=0)
    encoder, converter, keys = PictureEncoder(VideoCodec.H264, config), PictureConverter(config), []
    for index in range(20):
        if index == 10:
            encoder.request_keyframe()
        picture = encoder.encode(converter.convert(np.full((256, 256, 3), 10 * index, np.uint8)), index)
        keys.append(picture.keyframe)
    assert [index for index, key in enumerate(keys) if key] == [0, 10]


def test_a_picture_that_is_easy_to_encode_takes_few_bits_and_still_looks_the_same():
    config = EncoderConfig(codec="libx264", keyframe_interval_s=1_000)
    encoder, converter = PictureEncoder(VideoCodec.H264, config), PictureConverter(config)
    decoder = av.CodecContext.create("h264", "r")
    random = np.random.default_rng(0)
    ramp = np.linspace(40, 200, 256)[:, None, None] + np.zeros((1, 256, 3))
    sizes, errors = [], []
    for index in range(25):
        image = (np.roll(ramp, 3 * index, axis=0) + random.normal(0, 2, (256, 256, 1))).astype(np.uint8)
        planes = converter.convert(image)
        picture = encoder.encode(planes, index)
        sizes.append(len(picture.data))
        for frame in decoder.decode(av.Packet(picture.data)):
            errors.append(np.mean((frame.to_ndarray()[:256].astype(float) - planes.to_ndarray()[:256]) ** 2))
    assert 8 * sum(sizes) < config.bitrate_bps / 2, "of the second that these pictures take"
    assert 10 * np.log10(255**2 / np.mean(errors)) > 42, "dB"

"""The choice of the H.264 encoder: hardware that works, else x264. Encoders that fail do so for real."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

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

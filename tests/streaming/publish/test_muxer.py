"""The muxer's containers, read back: flashes and beeps that were one unit are still at one time."""

from __future__ import annotations

import asyncio

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from readback import read

from streaming.config import EncoderConfig
from streaming.publish.broadcast import EncodedUnit
from streaming.publish.encoders import PictureConverter, PictureEncoder, SoundCodec, SoundEncoder, VideoCodec
from streaming.publish.muxer import Muxer, mux_all

CONFIG = EncoderConfig(codec="libx264")
FLASHES = (30, 55, 80)
CONTAINERS = pytest.mark.parametrize(("ending", "container"), [
    (".mp4", "mp4"), (".mkv", "matroska"), (".flv", "flv"), (".ts", "mpegts"), (".nut", "nut"),
])  # fmt: skip


def encoded(count=100, first_number=0):
    """Units whose picture is white, and whose sound is loud, where there is a flash."""
    picture, sound = PictureEncoder(VideoCodec.H264, CONFIG), SoundEncoder(SoundCodec.AAC, CONFIG)
    beep = (12_000 * np.sin(2 * np.pi * 1_000 * np.arange(1_920) / 48_000)).astype(np.int16)
    units = []
    for index in range(count):
        flash = index in FLASHES
        image = np.full((128, 128, 3), 235 if flash else 16, np.uint8)
        pts = 1_920 * (5_000 + index)
        encoded_picture = picture.encode(PictureConverter(CONFIG).convert(image), index)
        packets = sound.encode(beep if flash else np.zeros(1_920, np.int16), pts)
        units.append(EncodedUnit(first_number + index, pts, encoded_picture, packets, True, flash))
    return units


def marks(found):
    """When flashes and beeps begin, in seconds of the file."""
    bright = np.array(found.pictures) > 128
    flashes = np.array(found.video_s[: len(bright)])[bright]
    loud = np.flatnonzero(np.abs(found.sound) > 0.1) / 48_000
    beeps = [loud[0], *loud[1:][np.diff(loud) > 0.5]]
    return flashes, found.heard_s + np.array(beeps)


@CONTAINERS
def test_picture_and_sound_stay_together(tmp_path, ending, container):
    path = tmp_path / f"marks{ending}"
    with path.open("wb", buffering=0) as file:
        muxer = Muxer(file, container, (128, 128), CONFIG)
        for unit in encoded():
            muxer.write(unit)
        muxer.close()
    flashes, beeps = marks(read(str(path)))
    assert len(flashes) == len(beeps) == len(FLASHES)
    assert np.abs(flashes - beeps).max() < 0.01


def test_it_begins_at_a_key_frame_and_time_goes_on_from_the_origin(tmp_path):
    units = encoded()
    path = tmp_path / "late.mkv"
    with path.open("wb", buffering=0) as file:
        muxer = Muxer(file, "matroska", (128, 128), CONFIG, units[0].pts)
        for unit in units[20:]:
            muxer.write(unit)
        muxer.close()
    found = read(str(path))
    first = next(unit for unit in units[20:] if unit.picture.keyframe)
    assert found.video_s[0] == pytest.approx((first.pts - units[0].pts) / 48_000, abs=0.002)
    assert found.keyframes_s[0] == found.video_s[0]
    assert found.video_s[0] <= found.sound_s[0] < found.video_s[0] + 0.045


async def test_a_destination_that_fails_is_an_os_error(tmp_path):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    async def units():
        for unit in encoded(60):
            yield unit

    with pytest.raises(OSError, match="No space left"):
        await mux_all(units(), Muxer(Full(), "mpegts", (128, 128), CONFIG), lambda: None, lambda: None)
    assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1


@CONTAINERS
def test_a_player_shows_the_colours_of_the_picture_by_what_the_file_says_of_them(tmp_path, ending, container):
    patches = np.array([(224, 172, 140), (96, 62, 48), (60, 80, 120), (180, 40, 50), (40, 150, 70), (128, 128, 128)])
    image = np.repeat(np.repeat(patches.reshape(2, 3, 3), 64, 0), 64, 1).astype(np.uint8)
    picture, path = PictureEncoder(VideoCodec.H264, CONFIG), tmp_path / f"colours{ending}"
    with path.open("wb", buffering=0) as file:
        muxer = Muxer(file, container, (192, 128), CONFIG)
        for index in range(10):
            planes = PictureConverter(CONFIG).convert(image)
            muxer.write(EncodedUnit(index, 1_920 * index, picture.encode(planes, index), (), True, False))
        muxer.close()
    with av.open(str(path)) as file:
        *_, frame = file.decode(video=0)
    named = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    assert named == (Colorspace.ITU709, 1, 1, ColorRange.MPEG)
    found = frame.to_ndarray(format="rgb24", src_colorspace=frame.colorspace).reshape(2, 64, 3, 64, 3)[:, 32, :, 32]
    assert np.abs(found.reshape(-1, 3).astype(int) - patches).max() <= 2

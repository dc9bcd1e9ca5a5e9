"""Real frames of the bundled speaker, and videos made of them as phones and cameras would."""

from __future__ import annotations

import itertools
from fractions import Fraction

import av
import cv2
import pytest

from precompute.video import read_frames


@pytest.fixture(scope="session")
def face_frames(speaker_video):
    """75 frames [360, 360, 3] of the speaker."""
    frames = itertools.islice(read_frames(speaker_video), 75)
    return [cv2.resize(frame, (360, 360), interpolation=cv2.INTER_AREA) for frame in frames]


@pytest.fixture(scope="session")
def write_video():
    """write_video(path, frames, ...): H.264 in MP4; `times_s` sets each frame's own time, `rotation` only a tag."""

    def write(path, frames, *, fps=25, times_s=None, rotation=0, options=None):
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=fps, options={"crf": "18", "preset": "ultrafast"} | (options or {})
            )
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 12800)
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.time_base = Fraction(1, 12800)
                frame.pts = round((number / fps if times_s is None else times_s[number]) * 12800)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if rotation:
            tag_rotation(path, rotation)
        return path

    return write


def tag_rotation(path, degrees):
    """Write the display matrix of a phone held upright into the track header, in place."""
    data = bytearray(path.read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    start = data.index(b"tkhd") + 4
    matrix = start + (40 if data[start] == 0 else 52)
    for place, value in enumerate((cosine, sine, 0, -sine, cosine, 0)):
        scale = 1 << (30 if place % 3 == 2 else 16)
        data[matrix + 4 * place : matrix + 4 * place + 4] = (value * scale).to_bytes(4, "big", signed=True)
    path.write_bytes(data)

"""Writes base and idle video for random access to frames: short groups, no B-frames, constant 25 fps."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from engine.avatar.video import GOP_FRAMES
from engine.media import FPS

CRF = 16  # visually indistinguishable from the original
OPTIONS = {
    "crf": str(CRF),
    "preset": "veryfast",
    "tune": "fastdecode",  # half the decoding time of every live frame for a tenth more bytes
    "g": str(GOP_FRAMES),
    "keyint_min": str(GOP_FRAMES),
    "sc_threshold": "0",
    "bf": "0",
}


class VideoWriter:
    """H.264 in MP4. Takes frames [H, W, 3] uint8 RGB of even size, in order."""

    def __init__(self, path: Path, width: int, height: int):
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=FPS, options=OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        # Stored in the file, so that every reader converts the colours back the same way.
        self._stream.codec_context.colorspace = Colorspace.SMPTE170M
        self._stream.codec_context.color_range = ColorRange.MPEG
        self._convert = VideoReformatter()

    def add(self, image: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        planes = self._convert.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=Colorspace.SMPTE170M,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            threads=1,
        )
        self._container.mux(self._stream.encode(planes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

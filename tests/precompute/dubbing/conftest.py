"""Small videos of every kind, with a moving gradient and patches of colour."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside this file

from drawings import HEIGHT, WIDTH, drawing


@pytest.fixture(scope="session")
def make_video():
    """make_video(path, times_s or count, ...): the drawings, encoded; returns the path."""

    def make(
        path,
        times_s=12,
        *,
        fps=Fraction(25),
        codec="libx264",
        pix_fmt="yuv420p",
        size=(WIDTH, HEIGHT),
        time_base=None,
        options=None,
        colours=(1, 1, 1, 1),
        aspect=None,
        matrix=None,
        draw=drawing,
        container_options=None,
    ):
        times_s = [n / Fraction(fps) for n in range(times_s)] if isinstance(times_s, int) else times_s
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = colours
            context.time_base = stream.time_base = time_base or 1 / Fraction(fps)
            if aspect:
                context.sample_aspect_ratio = aspect
            if matrix:
                stream.set_display_matrix(matrix)
            convert = VideoReformatter()
            for number, time_s in enumerate(times_s):
                image = av.VideoFrame.from_ndarray(draw(number, size), format="rgb24")
                frame = convert.reformat(image, format=pix_fmt, dst_colorspace=colours[0], dst_color_range=colours[3])
                frame.time_base, frame.pts = context.time_base, round(time_s / context.time_base)
                frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = colours
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make

"""Small videos of every kind, with a moving gradient and patches of colour."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

WIDTH, HEIGHT = 96, 64
PATCHES = ((230, 30, 30), (30, 200, 40), (40, 60, 230), (240, 220, 40))


def drawing(number, size=(WIDTH, HEIGHT)):
    """RGB [H, W, 3]: a gradient that moves with `number`, four patches that stand, and fine texture."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 2 + number * 5) % 256, (y * 3 + number * 2) % 256, (x + y) % 256], -1).astype(np.uint8)
    image[(x // 2 + y // 2) % 2 == 0] //= 2
    for n, colour in enumerate(PATCHES):
        image[height // 4 : height // 2, (1 + 2 * n) * width // 10 : (2 + 2 * n) * width // 10] = colour
    return image


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


def planes_of(frame):
    """The samples of all planes, without the padding of lines."""
    kind = np.dtype("<u2" if frame.format.components[0].bits > 8 else np.uint8)
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        planes.append(rows[: plane.height, : plane.width].copy())
    return planes


def same_samples(one, other):
    return all(np.array_equal(a, b) for a, b in zip(planes_of(one), planes_of(other), strict=True))

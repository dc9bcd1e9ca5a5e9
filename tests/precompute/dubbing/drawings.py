"""Drawings, times and sounds, and the samples of frames."""

from __future__ import annotations

import wave
from fractions import Fraction

import numpy as np

from engine.sound_file import SoundFile
from precompute.dubbing.source import Times

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


def times_of(count, fps=25, ticks=None):
    """Times of `count` pictures in ticks of 1/16000 s."""
    step = Fraction(16_000) / fps
    ticks = np.array([round(n * step) for n in range(count)] if ticks is None else ticks, np.int64)
    return Times(Fraction(1, 16_000), ticks, int(ticks[-1] + step), ticks.copy(), np.zeros(len(ticks), bool))


def write_wave(path, samples, rate_hz):
    """samples [N] or [N, C] in [-1, 1]."""
    samples = np.asarray(samples, np.float64)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return SoundFile(path)

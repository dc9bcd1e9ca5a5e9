"""Training samples: mouths as they are, and mouths with objects of random shape and texture laid over them.

All sizes are pixels of a patch (`precompute.occlusion`). Shadows and odd light are laid over mouths too: they cover
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from precompute.occlusion import PATCH_PX

MOUTH = (32.0, 37.0)  # x, y
ROWS, COLUMNS = np.mgrid[0:PATCH_PX, 0:PATCH_PX].astype(np.float32)
COVERED_SHARE, SHADOW_SHARE, GREY_SHARE = 0.6, 0.3, 0.08  # of the samples


@dataclass(frozen=True)
class Sources:
    """people: patches [n, 64, 64, 3] uint8 of each person; textures [n, 64, 64, 3] uint8: from anywhere in frames."""

    people: Sequence[np.ndarray]
    textures: np.ndarray


def sample(rng: np.random.Generator, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    """A patch [64, 64, 3] uint8 and how much of each pixel an object covers, [64, 64] float32 in 0 … 1."""
    person = sources.people[rng.integers(len(sources.people))]
    clean = person[rng.integers(len(person))]
    image = _moved(rng, clean[:, ::-1] if rng.random() < 0.5 else clean).astype(np.float32)
    covered = np.zeros((PATCH_PX, PATCH_PX), np.float32)
    if rng.random() < SHADOW_SHARE:
        edge = np.clip((1 - _shape(rng)) * rng.uniform(1, 14) + 0.5, 0, 1)
        image *= (1 - edge * rng.uniform(0.2, 0.65))[..., None]
    if rng.random() < COVERED_SHARE:
        distance = _shape(rng)
        covered = np.clip((1 - distance) * rng.uniform(6, 25) + 0.5, 0, 1)
        texture = _texture(rng, clean, sources)
        if rng.random() < 0.5:  # darker towards its outline, as a round object
            texture = texture * (1 - rng.uniform(0, 0.6) * np.clip(distance, 0, 1) ** rng.uniform(1, 6))[..., None]
        if rng.random() < 0.3:  # the shadow that the object casts around it
            image *= (1 - rng.uniform(0, 0.5) * np.clip((1.25 - distance) * 3, 0, 1))[..., None]
        image = image * (1 - covered[..., None]) + texture * covered[..., None]
    return _filmed(rng, image), covered


def _moved(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """As from a mesh that is a little off; before an object it slips by some pixels."""
    turn = np.array(cv2.getRotationMatrix2D(MOUTH, rng.normal(0, 4), float(np.exp(rng.normal(0, 0.07)))))
    turn[1] *= np.exp(rng.normal(0, 0.06))
    turn[1, 2] += MOUTH[1] - turn[1, :2] @ MOUTH - turn[1, 2]  # stretched around the mouth
    turn[:, 2] = turn[:, 2] + rng.normal(0, 1.5, 2)
    return cv2.warpAffine(patch, turn, (PATCH_PX, PATCH_PX), borderMode=cv2.BORDER_REPLICATE)


def _shape(rng: np.random.Generator) -> np.ndarray:
    """Distance [64, 64] from the middle of an object: 1 on its outline."""
    x0, y0 = np.array(MOUTH) + rng.normal(0, 14, 2)
    turn = rng.uniform(0, np.pi)
    x = (COLUMNS - x0) * np.cos(turn) + (ROWS - y0) * np.sin(turn)
    y = (ROWS - y0) * np.cos(turn) - (COLUMNS - x0) * np.sin(turn)
    width, height = rng.uniform(7, 30, 2)
    kind = rng.integers(5)
    if kind == 0:
        return np.hypot(x / width, y / height)
    if kind == 1:
        return np.maximum(np.abs(x) / width, np.abs(y) / height)
    if kind == 2:
        return ((x / width) ** 4 + (y / height) ** 4) ** 0.25
    if kind == 3:  # a straight edge
        return 1 + x / 20
    fingers, thickness = rng.integers(1, 5), rng.uniform(3, 8)
    distances = []
    for finger in range(fingers):
        length, tip = rng.uniform(10, 30), rng.uniform(-3, 8)
        across = y - (finger - (fingers - 1) / 2) * thickness * 1.85
        distances.append(np.hypot(np.maximum(np.abs(x - tip) - length, 0), across) / thickness)
    return np.minimum.reduce(distances)


def _texture(rng: np.random.Generator, own: np.ndarray, sources: Sources) -> np.ndarray:
    """The look of an object, [64, 64, 3] float32."""
    kind = rng.integers(6)
    if kind < 2:
        texture = sources.textures[rng.integers(len(sources.textures))].astype(np.float32)
    elif kind == 2:
        person = sources.people[rng.integers(len(sources.people))]
        texture = _skin(rng, person[rng.integers(len(person))])
    elif kind == 3:
        texture = _skin(rng, own) * rng.uniform(0.75, 1.15)
    else:
        colour = rng.uniform(5, 250, 3 if rng.random() < 0.5 else 1)
        texture = np.zeros((PATCH_PX, PATCH_PX, 3), np.float32) + colour.astype(np.float32)
        if kind == 5:  # stripes or a grid
            turn, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 2.4)
            wave = np.sin((COLUMNS * np.cos(turn) + ROWS * np.sin(turn)) * pitch)
            if rng.random() < 0.6:
                wave = wave * np.sin((ROWS * np.cos(turn) - COLUMNS * np.sin(turn)) * pitch)
            texture += wave[..., None] * rng.uniform(5, 90)
    turn = rng.uniform(0, 2 * np.pi)
    slope = ((COLUMNS - 32) * np.cos(turn) + (ROWS - 32) * np.sin(turn)) / PATCH_PX
    grain = cv2.resize(
        rng.normal(0, 1, (rng.integers(3, 33),) * 2).astype(np.float32),
        (PATCH_PX, PATCH_PX),
        interpolation=cv2.INTER_CUBIC,
    )
    texture = texture * (1 + rng.uniform(0, 0.7) * slope)[..., None] + grain[..., None] * rng.uniform(0, 9)
    return np.rot90(texture, rng.integers(4)).copy()


def _skin(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """A piece of a cheek, enlarged."""
    side, top = rng.integers(8, 20), rng.integers(4, 22)
    left = rng.choice([rng.integers(4, 12), rng.integers(38, 44)])
    return cv2.resize(patch[top : top + side, left : left + side], (PATCH_PX, PATCH_PX)).astype(np.float32)


def _filmed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Out of focus, in other light, noisy and compressed."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
    tint = rng.uniform(0.6, 1.25) * np.exp(rng.normal(0, 0.12, 3))
    image = 255 * (np.clip(image, 0, 255) / 255) ** rng.uniform(0.7, 1.4) * tint
    if rng.random() < GREY_SHARE:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    image = np.clip(image + rng.normal(0, rng.uniform(0, 5), image.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])[1]
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return image

"""References laid onto a target geometry: every pixel of the target window is looked up, through the mesh, in the
frame that shows the same point of the face.

Around the jaw a ring of extra triangles leads from the contour to a fixed distance beyond it, so that the neck follows
a moving chin and its motion dies out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.compose import face_window, lip_mask, lip_window_in, paste_mask
from engine.models.morphable import FACE_OVAL, LIPS_INNER, LIPS_OUTER, VERTICES, MorphableModel, project
from engine.models.renderer import CELL_PX, DIFFERENCE, References, RendererConfig
from engine.raster import Coverage, locate, spread

CONTOUR = FACE_OVAL[8:29]  # from ear to ear, along the chin
RING_GROWTH = 1.4
LIPS = [*LIPS_OUTER, *LIPS_INNER]
TURN_WEIGHT = 0.05  # squared model units for a squared radian: 10 degrees count like a lip offset of 0.04
BEHIND_PX = 1000.0  # the ring never hides the face


def _ring_triangles() -> np.ndarray:
    """Between copies of the contour (behind the 468 vertices) and the ring (behind those)."""
    inner = VERTICES + np.arange(len(CONTOUR))
    outer = inner + len(CONTOUR)
    first = np.column_stack([inner[:-1], inner[1:], outer[:-1]])
    second = np.column_stack([inner[1:], outer[1:], outer[:-1]])
    return np.concatenate([first, second])


@dataclass(frozen=True)
class Shape:
    """One frame's geometry: mesh [468 + ring, 3] float32 in crop pixels, canonical [468 + ring, 3] in model units
    without pose, rotation [3]."""

    mesh: np.ndarray
    canonical: np.ndarray
    rotation: np.ndarray


@dataclass(frozen=True)
class Reference:
    """A frame to take textures from: crop [256, 256, 3] uint8 and its shape."""

    crop: np.ndarray
    shape: Shape


@dataclass(frozen=True)
class Target:
    """What is to be rendered: the shape, its face window (cell), masks and coverage of that window."""

    shape: Shape
    cell: tuple[int, int]
    lip_cell: tuple[int, int]
    lip_mask: np.ndarray
    paste_mask: np.ndarray
    coverage: Coverage
    pncc: np.ndarray


def _lip_distance(a: Shape, b: Shape) -> float:
    offset = a.canonical[LIPS] - b.canonical[LIPS]
    return float((offset**2).sum(1).mean() + TURN_WEIGHT * ((a.rotation - b.rotation) ** 2).sum())


class Aligner:
    """Makes shapes, targets and aligned references. `vertices` below are [V, 3] in model units, `pose` [6]."""

    def __init__(self, model: MorphableModel, config: RendererConfig):
        self._config = config
        self._codes = model.codes.numpy()
        self._triangles = np.concatenate([model.triangles.numpy(), _ring_triangles()])

    def shape(self, vertices: Tensor, neutral: Tensor, pose: Tensor) -> Shape:
        """`neutral` [V, 3]: the same person without expression, from whose jaw the ring is taken."""
        centre = neutral[2]
        ring = centre + (neutral[list(CONTOUR)] - centre) * RING_GROWTH
        canonical = torch.cat([vertices, vertices[list(CONTOUR)], ring])
        mesh = project(canonical, pose)
        mesh[VERTICES:, 2] += BEHIND_PX
        return Shape(mesh.numpy(), canonical.numpy(), pose[:3].numpy())

    def target(self, shape: Shape, base: Shape) -> Target:
        """The windows and masks of `shape`, to be pasted into the frame whose own shape is `base`."""
        config = self._config
        cell = face_window(shape.mesh, config)
        height, width = config.face_rows * CELL_PX, config.face_columns * CELL_PX
        corner = np.array([cell[1] * CELL_PX, cell[0] * CELL_PX, 0], np.float32)
        coverage = locate(shape.mesh - corner, self._triangles, height, width)
        return Target(
            shape=shape,
            cell=cell,
            lip_cell=lip_window_in(shape.mesh, cell, config),
            lip_mask=lip_mask(shape.mesh, cell, config),
            paste_mask=paste_mask(shape.mesh, base.mesh, cell, config),
            coverage=coverage,
            pncc=spread(coverage, self._codes[None])[0],
        )

    def faces(self, target: Target, references: list[Reference]) -> References:
        """References over the face window."""
        config = self._config
        return self._align(target, references, (0, 0), config.face_rows, config.face_columns)

    def lips(self, target: Target, references: list[Reference], count: int) -> References:
        """The `count` references with the most similar lips and turn of the head, over the lip window; Lip-Attention
        gives the others next to no weight."""
        config = self._config
        chosen = sorted(references, key=lambda reference: _lip_distance(target.shape, reference.shape))[:count]
        return self._align(target, chosen, target.lip_cell, config.lip_rows, config.lip_columns)

    def _align(
        self, target: Target, references: list[Reference], cell: tuple[int, int], rows: int, columns: int
    ) -> References:
        top, left = cell[0] * CELL_PX, cell[1] * CELL_PX
        height, width = rows * CELL_PX, columns * CELL_PX
        coverage = target.coverage.window(slice(top, top + height), slice(left, left + width))
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
        here = np.stack([x + left + target.cell[1] * CELL_PX, y + top + target.cell[0] * CELL_PX])
        places = np.stack([r.shape.mesh[self._triangles, :2] for r in references])
        maps = spread(coverage, places, empty=here) - 0.5  # pixel centres to OpenCV's whole numbers
        pixels = [
            cv2.remap(r.crop, m[0], m[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for r, m in zip(references, maps, strict=True)
        ]
        signed = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return References(signed[None], self._difference(target, references, coverage)[None])

    def _difference(self, target: Target, references: list[Reference], coverage: Coverage) -> Tensor:
        """[N, 6, h, w] at the cells' centres."""
        middle = slice(CELL_PX // 2, None, CELL_PX)
        cells = coverage.window(middle, middle)
        offsets = np.stack([r.shape.canonical - target.shape.canonical for r in references])
        local = spread(cells, offsets[:, self._triangles])
        turned = np.stack([r.shape.rotation - target.shape.rotation for r in references])[..., None, None]
        turned = np.broadcast_to(turned, (len(references), DIFFERENCE - 3, *local.shape[2:]))
        return torch.from_numpy(np.concatenate([local, turned], 1).astype(np.float32))

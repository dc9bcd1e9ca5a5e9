"""References laid onto a target geometry: every pixel of the target window is looked up, through the mesh, in the
frame that shows the same point of the face.

Around the jaw a ring of extra triangles leads from the contour to a fixed distance beyond it, so that the neck follows
a moving chin and its motion dies out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import CROP_PX, FACE_OVAL, LIPS_INNER, LIPS_OUTER, VERTICES, MorphableModel, project
from engine.models.renderer import CELL_PX, DIFFERENCE, FINE, References, RendererConfig
from engine.paint.raster import Coverage, locate, spread, spread_codes
from engine.paint.window import (
    LIP_MARGIN_PX,
    MARGIN_PX,
    Window,
    lip_mask,
    lip_outline,
    paste_mask,
    paste_outlines,
    window_around,
    window_over,
)

CONTOUR = FACE_OVAL[8:29]  # from ear to ear, along the chin
SHAPE_VERTICES = VERTICES + 2 * len(CONTOUR)  # of the face, and the ring
RING_GROWTH = 1.4
LIPS = np.array([*LIPS_OUTER, *LIPS_INNER])
TURN_WEIGHT = 0.05  # squared model units for a squared radian: 10 degrees count like a lip offset of 0.04
# So many of the references, the first, give a fine picture its detail. A mixture of more is smoother than each of them.
FINE_FACES, FINE_LIPS = 1, 3
BEHIND_PX = 1000.0  # the ring never hides the face


def _ring_triangles() -> np.ndarray:
    """Between copies of the contour (behind the 468 vertices) and the ring (behind those)."""
    inner = VERTICES + np.arange(len(CONTOUR))
    outer = inner + len(CONTOUR)
    first = np.column_stack([inner[:-1], inner[1:], outer[:-1]])
    second = np.column_stack([inner[1:], outer[1:], outer[:-1]])
    return np.concatenate([first, second])


def triangles(model: MorphableModel) -> np.ndarray:
    """Of the face and, behind those, of the ring: [F, 3]."""
    return np.concatenate([model.triangles.numpy(), _ring_triangles()])


@dataclass(frozen=True)
class Shape:
    """One frame's geometry: mesh [468 + ring, 3] float32 in crop pixels, canonical [468 + ring, 3] in model units
    without pose, rotation [3]."""

    mesh: np.ndarray
    canonical: np.ndarray
    rotation: np.ndarray

    @cached_property
    def lips(self) -> np.ndarray:
        """Of the canonical vertices those of the lips, [40, 3]."""
        return self.canonical[LIPS]


@dataclass(frozen=True)
class Reference:
    """A frame to take textures from: crop [256, 256, 3] uint8 and its shape; fine [512, 512, 3], where a picture twice
    as fine is wanted."""

    crop: np.ndarray
    shape: Shape
    fine: np.ndarray | None = None

    @classmethod
    def of(cls, crop: np.ndarray, shape: Shape) -> Reference:
        """With a crop of 256 or of 512 px."""
        if len(crop) == CROP_PX:
            return cls(crop, shape)
        return cls(cv2.resize(crop, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA), shape, crop)


@dataclass(frozen=True)
class Target:
    """What is to be rendered: the shape, its face window in the crop, the lip window inside that, and masks, coverage
    and PNCC of the face window."""

    shape: Shape
    window: Window
    lips: Window
    lip_mask: np.ndarray
    paste_mask: np.ndarray
    coverage: Coverage
    pncc: np.ndarray


class Aligner:
    """Makes shapes, targets and aligned references. `vertices` below are [V, 3] in model units, `pose` [6].

    Windows are as small as what is pasted allows; with `fixed` they have the sizes given there, as batches need.
    """

    def __init__(self, model: MorphableModel, fixed: RendererConfig | None = None):
        self._fixed = fixed
        self._codes = model.codes.numpy()
        self._triangles = triangles(model)

    def shape(self, vertices: Tensor, neutral: Tensor, pose: Tensor) -> Shape:
        """`neutral` [V, 3]: the same person without expression, from whose jaw the ring is taken."""
        centre = neutral[2]
        ring = centre + (neutral[list(CONTOUR)] - centre) * RING_GROWTH
        canonical = torch.cat([vertices, vertices[list(CONTOUR)], ring])
        mesh = project(canonical, pose)
        mesh[VERTICES:, 2] += BEHIND_PX
        return Shape(mesh.numpy(), canonical.numpy(), pose[:3].numpy())

    def target(self, shape: Shape, base: Shape, like: Target | None = None) -> Target:
        """The windows and masks of `shape`, to be pasted into the frame whose own shape is `base`; the windows are
        those of `like` where it is given."""
        outlines, lips = paste_outlines(shape.mesh, base.mesh), lip_outline(shape.mesh)
        window, lip_window = (like.window, like.lips) if like else self.windows(outlines, lips)
        corner = np.array([window.left, window.top, 0], np.float32)
        coverage = locate(shape.mesh - corner, self._triangles, window.height, window.width)
        return Target(
            shape=shape,
            window=window,
            lips=lip_window,
            lip_mask=lip_mask(lips, window, lip_window),
            paste_mask=paste_mask(outlines, window),
            coverage=coverage,
            pncc=spread_codes(coverage, self._codes),
        )

    def windows(self, outlines: list[np.ndarray], lips: np.ndarray) -> tuple[Window, Window]:
        """The face window, and the lip window inside it."""
        if self._fixed is None:
            face = window_over(np.concatenate(outlines), MARGIN_PX)
            return face, window_over(lips, LIP_MARGIN_PX, face).inside(face)
        face = window_around(np.concatenate(outlines), self._fixed.face_rows, self._fixed.face_columns)
        return face, window_around(lips, self._fixed.lip_rows, self._fixed.lip_columns).inside(face)

    def faces(self, target: Target, references: list[Reference]) -> References:
        """References over the face window, the base frame first."""
        return self._align(target, references, Window(0, 0, target.window.rows, target.window.columns), FINE_FACES)

    def nearest(self, target: Target, shapes: list[Shape], count: int) -> list[int]:
        lips, turns = np.stack([shape.lips for shape in shapes]), np.stack([shape.rotation for shape in shapes])
        return nearest(target.shape, lips, turns, count)

    def lips(self, target: Target, references: list[Reference]) -> References:
        """References over the lip window, the most similar first."""
        return self._align(target, references, target.lips, FINE_LIPS)

    def _align(self, target: Target, references: list[Reference], part: Window, detailed: int) -> References:
        """`part` is inside the face window; so many of the references are laid on finely too, if they can."""
        coverage = target.coverage.window(*part.pixels)
        y, x = np.mgrid[0 : part.height, 0 : part.width].astype(np.float32)
        here = np.stack([x + part.left + target.window.left, y + part.top + target.window.top])
        places = np.stack([r.shape.mesh[:, :2] for r in references]) - 0.5  # OpenCV's pixel centres are whole numbers
        maps = spread(coverage, self._triangles, places, empty=here)
        pixels = [_laid(r.crop, *m) for r, m in zip(references, maps, strict=True)]
        signed = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        fine = [
            _laid_finely(r.fine, m) for r, m in zip(references[:detailed], maps, strict=False) if r.fine is not None
        ]
        return References(
            signed[None],
            self._difference(target, references, coverage)[None],
            torch.from_numpy(np.stack(fine))[None] if fine else None,
        )

    def _difference(self, target: Target, references: list[Reference], coverage: Coverage) -> Tensor:
        """[N, 6, h, w] at the cells' centres."""
        middle = slice(CELL_PX // 2, None, CELL_PX)
        cells = coverage.window(middle, middle)
        offsets = np.stack([r.shape.canonical - target.shape.canonical for r in references])
        local = spread(cells, self._triangles, offsets)
        turned = np.stack([r.shape.rotation - target.shape.rotation for r in references])[..., None, None]
        turned = np.broadcast_to(turned, (len(references), DIFFERENCE - 3, *local.shape[2:]))
        return torch.from_numpy(np.concatenate([local, turned], 1).astype(np.float32))


def nearest(target: Shape, lips: np.ndarray, turns: np.ndarray, count: int) -> list[int]:
    """Which `count` of the shapes with these lips [N, 40, 3] and rotations [N, 3] are most similar in both;
    Lip-Attention would give the others next to no weight."""
    distance = ((lips - target.lips) ** 2).sum(2).mean(1) + TURN_WEIGHT * ((turns - target.rotation) ** 2).sum(1)
    return [int(i) for i in np.argsort(distance, kind="stable")[:count]]


def _laid(crop: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What crop [S, S, 3] shows at x and y [h, w], whole numbers being centres of pixels: [h, w, 3]."""
    return cv2.remap(crop, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _laid_finely(crop: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What crop [512, 512, 3] shows at places [2, h, w], x and y in a crop of 256 px: [3, 2 h, 2 w]."""
    x, y = (cv2.resize(p, None, fx=FINE, fy=FINE) * FINE + (FINE - 1) / 2 for p in places)
    return np.stack(cv2.split(_laid(crop, x, y)))

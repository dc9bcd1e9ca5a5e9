"""References warped onto a target geometry: for every pixel of the target window, the mesh gives the place in the
reference that shows the same point of the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, DIFFERENCE, FINE, References, RendererConfig
from engine.paint.raster import Coverage, locate, spread, spread_codes
from engine.paint.references import FINE_FACES, FINE_LIPS
from engine.paint.shape import Shape, triangles
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


@dataclass(frozen=True)
class Reference:
    """A frame that textures are copied from: crop [256, 256, 3] uint8 and its shape; fine [512, 512, 3] uint8 for fine
    pictures, else None."""

    crop: np.ndarray
    shape: Shape
    fine: np.ndarray | None = None

    @classmethod
    def of(cls, crop: np.ndarray, shape: Shape) -> Reference:
        """The reference with a crop of 256 or 512 px, [S, S, 3] uint8."""
        if len(crop) == CROP_PX:
            return cls(crop, shape)
        return cls(cv2.resize(crop, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA), shape, crop)


@dataclass(frozen=True)
class Target:
    """A picture's geometry: the shape, its face window in the crop, the lip window inside that, and for the face window
    the lip mask [h / 4, w / 4] and paste mask [h, w] float32, the coverage and the PNCC [3, h, w] float32."""

    shape: Shape
    window: Window
    lips: Window
    lip_mask: np.ndarray
    paste_mask: np.ndarray
    coverage: Coverage
    pncc: np.ndarray


class Aligner:
    """Makes targets and aligned references.

    Windows are as small as the pasted region allows; with `fixed` they all have its sizes, as batches need.
    """

    def __init__(self, model: MorphableModel, fixed: RendererConfig | None = None):
        self._fixed = fixed
        self._codes = model.codes.numpy()
        self._triangles = triangles(model)

    def target(self, shape: Shape, base: Shape, like: Target | None = None) -> Target:
        """The windows and masks of `shape`, for pasting into the frame whose shape is `base`; with `like`, in the
        windows of that target."""
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
        """The face window, and the lip window inside it; outlines and lips are [n, 2] px of the crop."""
        if self._fixed is None:
            face = window_over(np.concatenate(outlines), MARGIN_PX)
            return face, window_over(lips, LIP_MARGIN_PX, face).inside(face)
        face = window_around(np.concatenate(outlines), self._fixed.face_rows, self._fixed.face_columns)
        return face, window_around(lips, self._fixed.lip_rows, self._fixed.lip_columns).inside(face)

    def faces(self, target: Target, references: list[Reference]) -> References:
        """References over the face window, the base frame first."""
        return self._align(target, references, Window(0, 0, target.window.rows, target.window.columns), FINE_FACES)

    def lips(self, target: Target, references: list[Reference]) -> References:
        """References over the lip window, the most similar first."""
        return self._align(target, references, target.lips, FINE_LIPS)

    def _align(self, target: Target, references: list[Reference], part: Window, detailed: int) -> References:
        """References over `part` of the face window; the first `detailed` of them also finely, where possible."""
        coverage = target.coverage.window(*part.pixels)
        y, x = np.mgrid[0 : part.height, 0 : part.width].astype(np.float32)
        here = np.stack([x + part.left + target.window.left, y + part.top + target.window.top])
        places = np.stack([r.shape.mesh[:, :2] for r in references]) - 0.5  # OpenCV's pixel centres are whole numbers
        maps = spread(coverage, self._triangles, places, empty=here)
        pixels = [_warped(r.crop, *m) for r, m in zip(references, maps, strict=True)]
        signed = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        fine = [
            _warped_fine(r.fine, m) for r, m in zip(references[:detailed], maps, strict=False) if r.fine is not None
        ]
        return References(
            signed[None],
            self._difference(target, references, coverage)[None],
            torch.from_numpy(np.stack(fine))[None] if fine else None,
        )

    def _difference(self, target: Target, references: list[Reference], coverage: Coverage) -> Tensor:
        """The references' geometry minus the target's at the centres of the cells, [N, 6, h, w]."""
        middle = slice(CELL_PX // 2, None, CELL_PX)
        cells = coverage.window(middle, middle)
        offsets = np.stack([r.shape.canonical - target.shape.canonical for r in references])
        local = spread(cells, self._triangles, offsets)
        turned = np.stack([r.shape.rotation - target.shape.rotation for r in references])[..., None, None]
        turned = np.broadcast_to(turned, (len(references), DIFFERENCE - 3, *local.shape[2:]))
        return torch.from_numpy(np.concatenate([local, turned], 1).astype(np.float32))


def _warped(crop: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] of crop [S, S, 3] at x and y [h, w]; whole numbers are centres of pixels."""
    return cv2.remap(crop, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _warped_fine(crop: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Pixels [3, 2 h, 2 w] of crop [512, 512, 3] at places [2, h, w], x and y in a crop of 256 px."""
    x, y = (cv2.resize(p, None, fx=FINE, fy=FINE) * FINE + (FINE - 1) / 2 for p in places)
    return np.stack(cv2.split(_warped(crop, x, y)))

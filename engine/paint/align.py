"""References warped onto a target geometry: for every pixel of the target window, the mesh gives the place in the
reference that shows the same point of the face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, DIFFERENCE, References, RendererConfig
from engine.paint.gather import texture
from engine.paint.raster import Coverage, locate, spread, spread_codes
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
    """A frame that textures are copied from: its crop [S, S, 3] uint8 of 256 or 512 px and its shape."""

    crop: np.ndarray
    shape: Shape


@dataclass(frozen=True)
class PasteTarget:
    """Where a picture is painted: the shape, its face window in the crop, and the paste mask [h, w] float32 in it."""

    shape: Shape
    window: Window
    paste_mask: np.ndarray


@dataclass(frozen=True)
class Target(PasteTarget):
    """The renderer's target: also the lip window inside the face window, and for the face window the lip mask
    [h / 4, w / 4], the coverage and the PNCC [3, h, w] float32."""

    lips: Window
    lip_mask: np.ndarray
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
        coverage = self._coverage(shape, window, 1)
        return Target(
            shape=shape,
            window=window,
            lips=lip_window,
            lip_mask=lip_mask(lips, window, lip_window),
            paste_mask=paste_mask(outlines, window),
            coverage=coverage,
            pncc=spread_codes(coverage, self._codes),
        )

    def paste_target(self, shape: Shape, base: Shape) -> PasteTarget:
        """`target` without what only the renderer needs."""
        outlines = paste_outlines(shape.mesh, base.mesh)
        window, _ = self.windows(outlines, lip_outline(shape.mesh))
        return PasteTarget(shape, window, paste_mask(outlines, window))

    def windows(self, outlines: list[np.ndarray], lips: np.ndarray) -> tuple[Window, Window]:
        """The face window, and the lip window inside it; outlines and lips are [n, 2] px of the crop."""
        if self._fixed is None:
            face = window_over(np.concatenate(outlines), MARGIN_PX)
            return face, window_over(lips, LIP_MARGIN_PX, face).inside(face)
        face = window_around(np.concatenate(outlines), self._fixed.face_rows, self._fixed.face_columns)
        return face, window_around(lips, self._fixed.lip_rows, self._fixed.lip_columns).inside(face)

    def faces(self, target: Target, references: list[Reference]) -> References:
        """References over the face window, the base frame first."""
        return self._align(target, references, _whole(target.window))

    def lips(self, target: Target, references: list[Reference]) -> References:
        """References over the lip window, the most similar first."""
        return self._align(target, references, target.lips)

    def texture(
        self, target: PasteTarget, lips: Sequence[Reference], faces: Sequence[Reference], shares: np.ndarray
    ) -> np.ndarray:
        """`engine.models.renderer.mixed` of `self.lips` and `self.faces`, in one pass: [k h, k w, 3] float32 in
        [0, 255], at the resolution of the references.

        shares: [N_l + N_f, rows, columns] float32 of the lip and the face references in the cells of the face window.
        """
        references = [*lips, *faces]
        zoom = len(references[0].crop) // CROP_PX
        meshes = zoom * np.stack([reference.shape.mesh[:, :2] for reference in references])
        corner = zoom * target.window.left, zoom * target.window.top
        crops = [reference.crop for reference in references]
        return texture(self._coverage_of(target, zoom), self._triangles, corner, meshes, crops, shares)

    def laid(self, target: PasteTarget, pixels: np.ndarray, before: PasteTarget) -> np.ndarray:
        """A painted window laid onto another target by the mesh: pixels [k h, k w, 3] uint8 of `before` to
        [k H, k W, 3] of `target`."""
        zoom = len(pixels) // before.window.height
        window, origin = target.window, before.window
        mesh = np.multiply(before.shape.mesh[None, :, :2] - np.array([origin.left, origin.top], np.float32), zoom)
        corner = zoom * (window.left - origin.left), zoom * (window.top - origin.top)
        whole = np.ones((1, window.rows, window.columns), np.float32)
        moved = texture(self._coverage_of(target, zoom), self._triangles, corner, mesh, [pixels], whole)
        return np.rint(moved).astype(np.uint8)

    def _align(self, target: Target, references: list[Reference], part: Window) -> References:
        """References over `part` of the face window, at the resolution of their crops."""
        zoom = len(references[0].crop) // CROP_PX
        rows, columns = part.pixels
        coverage = self._coverage_of(target, zoom).window(
            slice(zoom * rows.start, zoom * rows.stop), slice(zoom * columns.start, zoom * columns.stop)
        )
        y, x = (np.mgrid[0 : zoom * part.height, 0 : zoom * part.width].astype(np.float32) + 0.5) / zoom
        here = np.stack([x + part.left + target.window.left, y + part.top + target.window.top])
        places = np.stack([r.shape.mesh[:, :2] for r in references])
        maps = spread(coverage, self._triangles, places, empty=here) * zoom - 0.5  # OpenCV's centres are whole numbers
        pixels = [_warped(r.crop, *m) for r, m in zip(references, maps, strict=True)]
        signed = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return References(signed[None], self._difference(target, references, part)[None])

    def face_difference(self, target: Target, references: Sequence[Reference]) -> Tensor:
        """`difference` of `faces`, [N, 6, rows, columns]."""
        return self._difference(target, references, _whole(target.window))

    def lip_difference(self, target: Target, references: Sequence[Reference]) -> Tensor:
        """`difference` of `lips`, [N, 6, rows, columns]."""
        return self._difference(target, references, target.lips)

    def _coverage_of(self, target: PasteTarget, zoom: int) -> Coverage:
        if zoom == 1 and isinstance(target, Target):
            return target.coverage
        return self._coverage(target.shape, target.window, zoom)

    def _coverage(self, shape: Shape, window: Window, zoom: int) -> Coverage:
        """The coverage of a window, `zoom` pixels for each pixel of the crop of 256 px."""
        corner = np.array([window.left, window.top, 0], np.float32)
        mesh = (shape.mesh - corner) * np.float32(zoom)
        return locate(mesh, self._triangles, zoom * window.height, zoom * window.width)

    def _difference(self, target: Target, references: Sequence[Reference], part: Window) -> Tensor:
        """The references' geometry minus the target's at the centres of the cells of `part`, [N, 6, h, w]."""
        middle = slice(CELL_PX // 2, None, CELL_PX)
        cells = target.coverage.window(*part.pixels).window(middle, middle)
        offsets = np.stack([r.shape.canonical - target.shape.canonical for r in references])
        local = spread(cells, self._triangles, offsets)
        turned = np.stack([r.shape.rotation - target.shape.rotation for r in references])[..., None, None]
        turned = np.broadcast_to(turned, (len(references), DIFFERENCE - 3, *local.shape[2:]))
        return torch.from_numpy(np.concatenate([local, turned], 1).astype(np.float32))


def _whole(window: Window) -> Window:
    return Window(0, 0, window.rows, window.columns)


def _warped(crop: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] of crop [S, S, 3] at x and y [h, w]; whole numbers are centres of pixels."""
    return cv2.remap(crop, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

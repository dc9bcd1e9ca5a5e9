"""Windows of the crop around a target's lower face and lips, and the masks in them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.models.morphable import CROP_PX, FACE_OVAL, LIPS_OUTER
from engine.models.renderer import CELL_PX

GRID = CROP_PX // CELL_PX
LIP_GROWTH = 1.25  # the lip mask reaches this much beyond the outer contour: the rim of the lips moves with them
FEATHER_PX = 5.0
MARGIN_PX = 12.0  # of the face window around the paste mask: the feather, and the reach of the convolutions
LIP_MARGIN_PX = (
    8.0  # of the lip window around the lip mask: convolutions have zeros beyond it, which would leave a visible edge
)
# The pasted region reaches beyond the chin, where a moving jaw uncovers the neck, and stays on the cheeks elsewhere.
JAW_GROWTH = 0.84 + 0.24 * np.cos(np.linspace(-np.pi / 2, np.pi / 2, 15))[:, None]
# Below the nose, from cheek to cheek: the upper edge of the pasted region.
UNDER_NOSE = (206, 165, 167, 164, 393, 391, 426)
JAW = FACE_OVAL[11:26]  # from the left to the right angle of the jaw, along the chin


@dataclass(frozen=True)
class Window:
    """A rectangle of the crop, in cells of 4 px."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def left(self) -> int:
        return self.column * CELL_PX

    @property
    def top(self) -> int:
        return self.row * CELL_PX

    @property
    def height(self) -> int:
        return self.rows * CELL_PX

    @property
    def width(self) -> int:
        return self.columns * CELL_PX

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns of the crop's pixels."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def inside(self, outer: Window) -> Window:
        """The same cells, counted from the corner of `outer`, moved until they lie within it."""
        row = int(np.clip(self.row - outer.row, 0, outer.rows - self.rows))
        column = int(np.clip(self.column - outer.column, 0, outer.columns - self.columns))
        return Window(row, column, self.rows, self.columns)

    def local(self, points: np.ndarray) -> np.ndarray:
        """points [n, 2] px of the crop, from this window's corner."""
        return points - np.array([self.left, self.top])


def window_around(points: np.ndarray, rows: int, columns: int) -> Window:
    """The window of rows x columns centred on points [n, 2] px, moved until it lies within the crop."""
    middle = (points.min(0) + points.max(0)) / 2 / CELL_PX
    row = int(np.clip(round(float(middle[1]) - rows / 2), 0, GRID - rows))
    column = int(np.clip(round(float(middle[0]) - columns / 2), 0, GRID - columns))
    return Window(row, column, rows, columns)


def window_over(points: np.ndarray, margin_px: float, outer: Window | None = None) -> Window:
    """The smallest window within `outer` over points [n, 2] px and `margin_px` around them. Sides are even numbers of
    cells, so that the networks run at few sizes."""
    outer = outer or Window(0, 0, GRID, GRID)
    corner = np.array([outer.column, outer.row])
    most = np.array([outer.columns, outer.rows])
    low = np.floor((points.min(0) - margin_px) / CELL_PX).astype(int) - corner
    high = np.ceil((points.max(0) + margin_px) / CELL_PX).astype(int) - corner
    low, high = low.clip(0, most - 2), high.clip(2, most)
    size = np.minimum((np.maximum(high - low, 2) + 1) // 2 * 2, most)
    low = np.minimum(low, most - size) + corner
    return Window(int(low[1]), int(low[0]), int(size[1]), int(size[0]))


def paste_outlines(*meshes: np.ndarray) -> list[np.ndarray]:
    """The outline [n, 2] of the pasted region, from below the nose to below the chin, of each of the meshes [V, 3] in
    crop pixels."""
    outlines = []
    for mesh in meshes:
        jaw = mesh[2, :2] + (mesh[list(JAW), :2] - mesh[2, :2]) * JAW_GROWTH
        outlines.append(np.concatenate([jaw, mesh[list(UNDER_NOSE), :2]]))
    return outlines


def lip_outline(mesh: np.ndarray) -> np.ndarray:
    """The outline [n, 2] of the region of Lip-Attention: the outer lips of mesh [V, 3] and a rim."""
    lips = mesh[list(LIPS_OUTER), :2]
    grown: np.ndarray = lips.mean(0) + (lips - lips.mean(0)) * LIP_GROWTH
    return grown


def _polygon(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Anti-aliased filled polygon [h, w] float32 in [0, 1] of points [n, 2] px."""
    image = np.zeros(shape, np.uint8)
    cv2.fillPoly(image, [np.rint(points * 16).astype(np.int32)], (255,), lineType=cv2.LINE_AA, shift=4)
    return image.astype(np.float32) / 255


def lip_mask(outline: np.ndarray, face: Window, lips: Window) -> np.ndarray:
    """M of eq. 4 over the window `face`: [rows, columns] float32, the share of each cell that lies in the outline.

    Outside the window `lips` (within `face`) and in its outermost cells it is zero: the ends of a mouth that is wider
    are left to Face-Attention.
    """
    filled = _polygon(face.local(outline), (face.height, face.width))
    cells = filled.reshape(face.rows, CELL_PX, face.columns, CELL_PX).mean((1, 3))
    inside = np.zeros_like(cells)
    place = np.s_[lips.row + 1 : lips.row + lips.rows - 1, lips.column + 1 : lips.column + lips.columns - 1]
    inside[place] = cells[place]
    return inside


def paste_mask(outlines: list[np.ndarray], window: Window) -> np.ndarray:
    """Soft mask [h, w] float32 of the union of the outlines, zero at the window's border."""
    mask = np.zeros((window.height, window.width), np.float32)
    for outline in outlines:
        mask = np.maximum(mask, _polygon(window.local(outline), (window.height, window.width)))
    border = int(FEATHER_PX) + 1
    mask[:border] = mask[-border:] = 0
    mask[:, :border] = mask[:, -border:] = 0
    return cv2.GaussianBlur(mask, (0, 0), FEATHER_PX / 2)

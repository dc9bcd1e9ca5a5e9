"""Between the full frame and a crop of 256 or 512 px: cutting, windows and masks of a target mesh, pasting back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.models.morphable import CROP_PX, FACE_OVAL, LIPS_OUTER
from engine.models.renderer import CELL_PX

GRID = CROP_PX // CELL_PX
LIP_GROWTH = 1.25  # the lip mask reaches this much beyond the outer contour: the rim of the lips moves with them
FEATHER_PX = 5.0
MARGIN_PX = 12.0  # of the rendered window around what is pasted: the feather and what convolutions see beyond it
LIP_MARGIN_PX = 8.0  # of the lip window around the lip mask: convolutions see zeros beyond it, and a line would show
LIGHT_LEVELS = 10.0  # of 255: differences at the mask's edge up to about this are put down to light
MATCH_CELLS = 32  # they are compared on a grid of so many cells along the longer side
MATCH_BLUR, MATCH_FADE = 3.0, 0.02  # cells, and the share of edge among them below which nothing is corrected
# The pasted region reaches beyond the chin, where a moving jaw uncovers the neck, and stays on the cheeks elsewhere.
JAW_GROWTH = 0.84 + 0.24 * np.cos(np.linspace(-np.pi / 2, np.pi / 2, 15))[:, None]
# Below the nose, from cheek to cheek: the upper edge of what is pasted back.
UNDER_NOSE = (206, 165, 167, 164, 393, 391, 426)
JAW = FACE_OVAL[11:26]  # from the left to the right angle of the jaw, along the chin


def cut(frame: np.ndarray, box: np.ndarray, crop_px: int = CROP_PX) -> np.ndarray:
    """The square box (left, top, size) of frame [H, W, 3] as a crop [crop_px, crop_px, 3]; edges repeat outside the
    frame."""
    left, top, size = (int(v) for v in box)
    height, width = frame.shape[:2]
    rows = np.clip(np.arange(top, top + size), 0, height - 1)
    columns = np.clip(np.arange(left, left + size), 0, width - 1)
    inside = top >= 0 and left >= 0 and top + size <= height and left + size <= width
    square = frame[top : top + size, left : left + size] if inside else frame[rows[:, None], columns]
    how = cv2.INTER_AREA if size > crop_px else cv2.INTER_CUBIC
    return cv2.resize(square, (crop_px, crop_px), interpolation=how)


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
    cells, so that the networks meet few different sizes."""
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
    """For each of the meshes [V, 3] (crop pixels) the outline [n, 2] of what is pasted: below the nose to below the
    chin."""
    outlines = []
    for mesh in meshes:
        jaw = mesh[2, :2] + (mesh[list(JAW), :2] - mesh[2, :2]) * JAW_GROWTH
        outlines.append(np.concatenate([jaw, mesh[list(UNDER_NOSE), :2]]))
    return outlines


def lip_outline(mesh: np.ndarray) -> np.ndarray:
    """What Lip-Attention fetches, [n, 2]: the outer lips of mesh [V, 3] and a rim around them."""
    lips = mesh[list(LIPS_OUTER), :2]
    grown: np.ndarray = lips.mean(0) + (lips - lips.mean(0)) * LIP_GROWTH
    return grown


def _polygon(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Anti-aliased filled polygon [h, w] float32 in [0, 1] of points [n, 2] px."""
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], (255,), lineType=cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def lip_mask(outline: np.ndarray, face: Window, lips: Window) -> np.ndarray:
    """M of eq. 4 over the window `face`: [rows, columns] float32, the share of each cell that lies in the outline.

    A mouth wider than the window `lips` (within `face`) is fetched by Face-Attention at its ends.
    """
    filled = _polygon(face.local(outline), (face.height, face.width))
    cells = filled.reshape(face.rows, CELL_PX, face.columns, CELL_PX).mean((1, 3))
    inside = np.zeros_like(cells)
    place = np.s_[lips.row : lips.row + lips.rows, lips.column : lips.column + lips.columns]
    inside[place] = cells[place]
    return inside


def paste_mask(outlines: list[np.ndarray], window: Window) -> np.ndarray:
    """Soft mask [h, w] float32 of what is pasted back, the union of the outlines, zero at the window's border."""
    mask = np.zeros((window.height, window.width), np.float32)
    for outline in outlines:
        mask = np.maximum(mask, _polygon(window.local(outline), (window.height, window.width)))
    border = int(FEATHER_PX) + 1
    mask[:border] = mask[-border:] = 0
    mask[:, :border] = mask[:, -border:] = 0
    return cv2.GaussianBlur(mask, (0, 0), FEATHER_PX / 2)


def paste(frame: np.ndarray, box: np.ndarray, window: Window, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of frame [H, W, 3] with pixels [k h, k w, 3] uint8 of the window blended in by mask [h, w].

    Pixels of the frame where the mask is zero stay bit-equal.
    """
    left, top, size = (int(v) for v in box)
    scale = size / CROP_PX
    x0, y0 = window.left, window.top
    x1, y1 = x0 + window.width, y0 + window.height
    height, width = frame.shape[:2]
    rows = slice(max(0, int(np.ceil(top + y0 * scale))), max(0, min(height, int(top + y1 * scale))))
    columns = slice(max(0, int(np.ceil(left + x0 * scale))), max(0, min(width, int(left + x1 * scale))))
    out = frame.copy()
    target = out[rows, columns]
    if not target.size:
        return out

    def to_window(fine: float) -> np.ndarray:
        """Pixel centres of the target in those of a picture of the window that is `fine` times as large:
        x_window = ((x_frame + 0.5 - left) / scale - x0) fine - 0.5."""
        x, y = (columns.start + 0.5 - left) / scale - x0, (rows.start + 0.5 - top) / scale - y0
        return np.array([[fine / scale, 0, x * fine - 0.5], [0, fine / scale, y * fine - 0.5]])

    fine = len(pixels) / window.height
    # A fine picture is made a little smaller, down to half: cubic keeps 1.1 to 1.3 times as much detail as linear.
    how = (cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
    size_px = (target.shape[1], target.shape[0])
    colour = cv2.warpAffine(pixels, to_window(fine), size_px, flags=how, borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.warpAffine(mask, to_window(1), size_px, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    under = np.ascontiguousarray(target)
    target[:] = cv2.blendLinear(_matched(colour, under, soft), under, soft, 1 - soft)
    return out


def _matched(colour: np.ndarray, under: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """colour [h, w, 3] with the light of `under` where the mask's edge is, and less of it further inside."""
    height, width = mask.shape
    small = (max(1, width * MATCH_CELLS // max(width, height)), max(1, height * MATCH_CELLS // max(width, height)))
    there, here = (cv2.resize(x, small, interpolation=cv2.INTER_AREA).astype(np.float32) for x in (under, colour))
    difference, edge = there - here, cv2.resize(mask, small, interpolation=cv2.INTER_AREA)
    # A large difference is no light but a chin that has moved.
    weight = 4 * edge * (1 - edge) * np.exp(-((np.abs(difference).max(2) / LIGHT_LEVELS) ** 2))
    total = cv2.GaussianBlur(difference * weight[..., None], (0, 0), MATCH_BLUR)
    light = total / (cv2.GaussianBlur(weight, (0, 0), MATCH_BLUR) + MATCH_FADE)[..., None]
    field = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    matched: np.ndarray = cv2.add(colour, field, dtype=cv2.CV_8U)
    return matched

"""Between the full frame and the 256 px crop: cutting, the windows and masks of a target mesh, pasting back."""

from __future__ import annotations

import cv2
import numpy as np

from engine.models.morphable import CROP_PX, FACE_OVAL, LIPS_OUTER
from engine.models.renderer import CELL_PX, RendererConfig

GRID = CROP_PX // CELL_PX
LIP_GROWTH = 1.25  # the lip mask reaches this much beyond the outer contour: the rim of the lips moves with them
FEATHER_PX = 5.0
# The pasted region reaches beyond the chin, where a moving jaw uncovers the neck, and stays on the cheeks elsewhere.
JAW_GROWTH = 0.84 + 0.24 * np.cos(np.linspace(-np.pi / 2, np.pi / 2, 15))[:, None]
# Below the nose, from cheek to cheek: the upper edge of what is pasted back.
UNDER_NOSE = (206, 165, 167, 164, 393, 391, 426)
JAW = FACE_OVAL[11:26]  # from the left to the right angle of the jaw, along the chin


def cut(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The square box (left, top, size) of frame [H, W, 3] as a crop [256, 256, 3]; edges repeat outside the frame."""
    left, top, size = (int(v) for v in box)
    height, width = frame.shape[:2]
    rows = np.clip(np.arange(top, top + size), 0, height - 1)
    columns = np.clip(np.arange(left, left + size), 0, width - 1)
    inside = top >= 0 and left >= 0 and top + size <= height and left + size <= width
    square = frame[top : top + size, left : left + size] if inside else frame[rows[:, None], columns]
    how = cv2.INTER_AREA if size > CROP_PX else cv2.INTER_CUBIC
    return cv2.resize(square, (CROP_PX, CROP_PX), interpolation=how)


def _window(points: np.ndarray, rows: int, columns: int) -> tuple[int, int]:
    """Row and column (in cells) of a window centred on points [n, 2] px that stays inside the crop."""
    middle = (points.min(0) + points.max(0)) / 2 / CELL_PX
    row = int(np.clip(round(float(middle[1]) - rows / 2), 0, GRID - rows))
    column = int(np.clip(round(float(middle[0]) - columns / 2), 0, GRID - columns))
    return row, column


def face_window(mesh: np.ndarray, config: RendererConfig) -> tuple[int, int]:
    """Cell of the face window of mesh [V, 3] in crop pixels: below the nose to below the chin."""
    return _window(mesh[[*JAW, 2], :2], config.face_rows, config.face_columns)


def lip_window(mesh: np.ndarray, config: RendererConfig) -> tuple[int, int]:
    """Cell of the lip window of mesh [V, 3] in crop pixels."""
    return _window(mesh[list(LIPS_OUTER), :2], config.lip_rows, config.lip_columns)


def _polygon(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Anti-aliased filled polygon [h, w] float32 in [0, 1] of points [n, 2] px."""
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], (255,), lineType=cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def lip_mask(mesh: np.ndarray, cell: tuple[int, int], config: RendererConfig) -> np.ndarray:
    """M of eq. 4 over the face window at `cell`: [rows, columns] float32, the share of each cell that is lips."""
    lips = mesh[list(LIPS_OUTER), :2]
    grown = lips.mean(0) + (lips - lips.mean(0)) * LIP_GROWTH
    shape = (config.face_rows * CELL_PX, config.face_columns * CELL_PX)
    filled = _polygon(grown - np.array([cell[1], cell[0]]) * CELL_PX, shape)
    cells = filled.reshape(config.face_rows, CELL_PX, config.face_columns, CELL_PX).mean((1, 3))
    inside = np.zeros_like(cells)  # a mouth wider than the lip window is fetched by Face-Attention at its ends
    row, column = lip_window_in(mesh, cell, config)
    place = np.s_[row : row + config.lip_rows, column : column + config.lip_columns]
    inside[place] = cells[place]
    return inside


def lip_window_in(mesh: np.ndarray, cell: tuple[int, int], config: RendererConfig) -> tuple[int, int]:
    """Row and column of the lip window inside the face window at `cell`."""
    row, column = lip_window(mesh, config)
    return (
        int(np.clip(row - cell[0], 0, config.face_rows - config.lip_rows)),
        int(np.clip(column - cell[1], 0, config.face_columns - config.lip_columns)),
    )


def paste_mask(target: np.ndarray, base: np.ndarray, cell: tuple[int, int], config: RendererConfig) -> np.ndarray:
    """Soft mask [4 rows, 4 columns] float32 of what is pasted back: below the nose to below the chin, over both the
    target mesh and the base frame's own mesh [V, 3] (crop pixels), zero at the window's border."""
    shape = (config.face_rows * CELL_PX, config.face_columns * CELL_PX)
    mask = np.zeros(shape, np.float32)
    for mesh in (target, base):
        jaw = mesh[list(JAW), :2]
        jaw = mesh[2, :2] + (jaw - mesh[2, :2]) * JAW_GROWTH
        outline = np.concatenate([jaw, mesh[list(UNDER_NOSE), :2]])
        mask = np.maximum(mask, _polygon(outline - np.array([cell[1], cell[0]]) * CELL_PX, shape))
    border = int(FEATHER_PX) + 1
    mask[:border] = mask[-border:] = 0
    mask[:, :border] = mask[:, -border:] = 0
    return cv2.GaussianBlur(mask, (0, 0), FEATHER_PX / 2)


def paste(
    frame: np.ndarray, box: np.ndarray, cell: tuple[int, int], pixels: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """A copy of frame [H, W, 3] with pixels [h, w, 3] uint8 of the face window blended in by mask [h, w].

    Pixels where the mask is zero stay bit-equal.
    """
    left, top, size = (int(v) for v in box)
    scale = size / CROP_PX
    y0, x0 = cell[0] * CELL_PX, cell[1] * CELL_PX
    y1, x1 = y0 + mask.shape[0], x0 + mask.shape[1]
    height, width = frame.shape[:2]
    rows = slice(max(0, int(np.ceil(top + y0 * scale))), max(0, min(height, int(top + y1 * scale))))
    columns = slice(max(0, int(np.ceil(left + x0 * scale))), max(0, min(width, int(left + x1 * scale))))
    out = frame.copy()
    target = out[rows, columns]
    if not target.size:
        return out
    # Destination pixel centres in window pixels: x_window = (x_frame + 0.5 - left) / scale - x0 - 0.5.
    to_window = np.array(
        [
            [1 / scale, 0, (columns.start + 0.5 - left) / scale - x0 - 0.5],
            [0, 1 / scale, (rows.start + 0.5 - top) / scale - y0 - 0.5],
        ]
    )
    how = (cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
    size_px = (target.shape[1], target.shape[0])
    colour = cv2.warpAffine(pixels, to_window, size_px, flags=how, borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.warpAffine(mask, to_window, size_px, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)[..., None]
    blended = target + soft * (colour.astype(np.float32) - target)
    target[:] = np.where(soft > 0, np.clip(np.rint(blended), 0, 255), target).astype(np.uint8)
    return out

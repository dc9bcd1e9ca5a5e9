"""Between the full frame and a crop of 256 or 512 px: cutting a crop, sharpening a rendered window and pasting it back.

GPU counterparts for batches, in `engine.paint.gpu.composite`: `sharpened`, `blended` of `paste`, `_light` of
`_matched`; of `engine.paint.window`: `lip_masks` of `lip_mask`, `paste_masks` of `paste_mask`, `filled` of `_polygon`.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.models.morphable import CROP_PX
from engine.models.renderer import CELL_PX
from engine.paint.window import Window

LIGHT_LEVELS = 10.0  # of 255: smaller differences at the mask's edge are ascribed to light, gradually
MATCH_CELLS = 32  # cells along the longer side of the grid on which differences of light are measured
# Warping, mixing and correcting references costs a quarter of the detail inside the mouth (docs/renderer.md).
SHARPENING, DETAIL_PX = 0.25, 2.0  # share of the detail that is added; its scale in pixels of a crop of 256 px
MATCH_BLUR, MATCH_FADE = 3.0, 0.02  # cells; the share of edge among them below which the correction fades out


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


def sharpened(pixels: np.ndarray, lips: np.ndarray) -> np.ndarray:
    """A rendered window [k h, k w, 3] float32 in [0, 255], with more detail where lips [h / 4, w / 4] are: uint8."""
    height, width = pixels.shape[:2]
    mask = cv2.resize(lips, (width, height), interpolation=cv2.INTER_LINEAR)
    coarse = cv2.GaussianBlur(pixels, (0, 0), DETAIL_PX * height / (CELL_PX * len(lips)))
    sharp: np.ndarray = cv2.add(pixels, SHARPENING * mask[..., None] * (pixels - coarse), dtype=cv2.CV_8U)
    return sharp


def paste(frame: np.ndarray, box: np.ndarray, window: Window, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of frame [H, W, 3] with pixels [k h, k w, 3] uint8 of the window blended in by mask [h, w].

    box: left, top and size of the crop in the frame. Pixels of the frame where the mask is zero stay bit-equal.
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
        """The affine map [2, 3] from pixels of the target to those of a picture of the window that is `fine` times as
        large: x_window = ((x_frame + 0.5 - left) / scale - x0) fine - 0.5."""
        x, y = (columns.start + 0.5 - left) / scale - x0, (rows.start + 0.5 - top) / scale - y0
        return np.array([[fine / scale, 0, x * fine - 0.5], [0, fine / scale, y * fine - 0.5]])

    fine = len(pixels) / window.height
    # A fine picture is reduced, at most to half: cubic keeps 1.1 to 1.3 times as much detail as linear.
    how = (cv2.INTER_LINEAR if scale < 1 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
    size_px = (target.shape[1], target.shape[0])
    colour = cv2.warpAffine(pixels, to_window(fine), size_px, flags=how, borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.warpAffine(mask, to_window(1), size_px, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    under = np.ascontiguousarray(target)
    target[:] = cv2.blendLinear(_matched(colour, under, soft), under, soft, 1 - soft)
    return out


def _matched(colour: np.ndarray, under: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """colour [h, w, 3] corrected to the light of `under` at the mask's edge; the correction fades inwards."""
    height, width = mask.shape
    small = (max(1, width * MATCH_CELLS // max(width, height)), max(1, height * MATCH_CELLS // max(width, height)))
    there, here = (cv2.resize(x, small, interpolation=cv2.INTER_AREA).astype(np.float32) for x in (under, colour))
    difference, edge = there - here, cv2.resize(mask, small, interpolation=cv2.INTER_AREA)
    # A large difference is a chin that has moved, not light.
    weight = 4 * edge * (1 - edge) * np.exp(-((np.abs(difference).max(2) / LIGHT_LEVELS) ** 2))
    total = cv2.GaussianBlur(difference * weight[..., None], (0, 0), MATCH_BLUR)
    light = total / (cv2.GaussianBlur(weight, (0, 0), MATCH_BLUR) + MATCH_FADE)[..., None]
    field = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    matched: np.ndarray = cv2.add(colour, field, dtype=cv2.CV_8U)
    return matched

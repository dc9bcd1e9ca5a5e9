"""Masks, light and blending for batches of pictures, in torch, on any device.

Counterparts of functions on the CPU: `filled` of `window._polygon`, `lip_masks` of `window.lip_mask`, `paste_masks` of
`window.paste_mask`, `sharpened` of `composite.sharpened`, `blended` of `composite.paste`, `_light` of
`composite._matched`; `gaussian`, `_taps`, `_means` and `_stretch` compute OpenCV's GaussianBlur, warpAffine and resize.

A window is neither turned nor sheared in the frame, so every resampling and blur here is a product with two small
matrices of each picture, one for the rows and one for the columns.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.renderer import CELL_PX
from engine.paint.composite import DETAIL_PX, LIGHT_LEVELS, MATCH_BLUR, MATCH_CELLS, MATCH_FADE, SHARPENING
from engine.paint.window import FEATHER_PX

GROWN_PX, SOFT_PX = 0.62, 1.4  # growth and edge width of OpenCV's anti-aliased polygons; fitted
CUBIC = -0.75  # parameter of OpenCV's cubic kernel
STEP = 32  # OpenCV resamples at multiples of 1/32 px


def filled(outlines: Tensor, height: int, width: int) -> Tensor:
    """Anti-aliased polygons: outlines [..., n, 2] px to [..., height, width] in [0, 1]; pixel centres are whole
    numbers."""
    device = outlines.device
    start = outlines[..., None, None, :]  # [..., n, 1, 1, 2]
    edge = (outlines.roll(-1, -2) - outlines)[..., None, None, :]
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    dx, dy = x - start[..., 0], y - start[..., 1]
    along = ((dx * edge[..., 0] + dy * edge[..., 1]) / (edge.square().sum(-1) + 1e-9)).clamp(0, 1)
    distance = torch.hypot(dx - along * edge[..., 0], dy - along * edge[..., 1]).amin(-3)
    ends = dy - edge[..., 1]
    right_of = dx * edge[..., 1] < dy * edge[..., 0]
    crossed = ((dy >= 0) != (ends >= 0)) & (right_of == (edge[..., 1] > 0))
    inside = crossed.sum(-3) % 2 == 1
    return ((torch.where(inside, distance, -distance) + GROWN_PX) / SOFT_PX + 0.5).clamp(0, 1)


def lip_masks(outlines: Tensor, lip_cell: Tensor, size: tuple[int, int], lips: tuple[int, int]) -> Tensor:
    """`window.lip_mask` [B, 1, rows, columns] of outlines [B, n, 2] in px of windows of `size` cells; their lip
    windows of `lips` cells begin at lip_cell [B, 2]."""
    rows, columns = size
    cells = functional.avg_pool2d(filled(outlines, CELL_PX * rows, CELL_PX * columns)[:, None], CELL_PX)
    row = torch.arange(rows, device=outlines.device) - lip_cell[:, :1]
    column = torch.arange(columns, device=outlines.device) - lip_cell[:, 1:]
    within = ((row > 0) & (row < lips[0] - 1))[:, :, None] & ((column > 0) & (column < lips[1] - 1))[:, None, :]
    return cells * within[:, None]


def paste_masks(outlines: Tensor, height: int, width: int) -> Tensor:
    """`window.paste_mask` [B, height, width] of the union of outlines [B, k, n, 2] px."""
    mask = filled(outlines, height, width).amax(1)
    border = int(FEATHER_PX) + 1
    inner = mask[:, border:-border, border:-border]
    mask = functional.pad(inner, (border,) * 4)
    rows, columns = (gaussian(n, FEATHER_PX / 2, mask.device) for n in (height, width))
    return rows @ mask @ columns.T


def sharpened(pixels: Tensor, lips: Tensor) -> Tensor:
    """`composite.sharpened` of pixels [B, 3, k h, k w] in 0 to 255 and lips [B, 1, h / 4, w / 4]."""
    mask = functional.interpolate(lips, scale_factor=pixels.shape[2] // lips.shape[2], mode="bilinear")
    detail_px = DETAIL_PX * pixels.shape[2] / (CELL_PX * lips.shape[2])
    rows, columns = (gaussian(n, detail_px, pixels.device) for n in pixels.shape[2:])
    return pixels + SHARPENING * mask * (pixels - rows @ pixels @ columns.T)


def blended(pixels: Tensor, mask: Tensor, under: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """`composite.paste`: rendered pixels [B, 3, k h, k w] in 0 to 255 of the windows, blended by mask [B, h, w] into
    the frames' pixels under them, [B, 3, H, W]; returns the blend, in whole numbers.

    place [B, 4]: the step in window pixels from one frame pixel to the next, the places of the first column and row in
    the window, and 1 for a cubic kernel.  size [B, 2] int64: the valid rows and columns of `under`.
    """
    step, x, y, cubic = place.unbind(1)
    high, wide = under.shape[2:]
    fine = pixels.shape[2] // mask.shape[1]
    rows = _positions(fine * step, fine * (y + 0.5) - 0.5, high)
    columns = _positions(fine * step, fine * (x + 0.5) - 0.5, wide)
    through = _taps(rows, pixels.shape[2], cubic)[:, None], _taps(columns, pixels.shape[3], cubic)[:, None].mT
    colour = (through[0] @ pixels @ through[1]).round().clamp(0, 255)
    down, across = _hats(_positions(step, y, high), mask.shape[1]), _hats(_positions(step, x, wide), mask.shape[2])
    soft = (down @ mask @ across.mT)[:, None]
    matched = (colour + _light(colour, under, soft, size)).round().clamp(0, 255)
    return (matched * soft + under * (1 - soft)).round()


def _light(colour: Tensor, under: Tensor, soft: Tensor, size: Tensor) -> Tensor:
    """`composite._matched`: the difference of light between `under` and `colour` [B, 3, H, W] at the edge of soft
    [B, 1, H, W], fading inwards."""
    small = (size * MATCH_CELLS // size.amax(1, keepdim=True).clamp(min=1)).clamp(min=1)
    height, width = under.shape[2:]
    down = _means(size[:, 0], small[:, 0], height)[:, None], _means(size[:, 1], small[:, 1], width)[:, None].mT
    there, here = ((down[0] @ image @ down[1]).round() for image in (under, colour))
    difference, edge = there - here, down[0] @ soft @ down[1]
    weight = 4 * edge * (1 - edge) * torch.exp(-((difference.abs().amax(1, keepdim=True) / LIGHT_LEVELS) ** 2))
    blurs = _small_gaussians(under.device)
    blur = blurs[small[:, 0]][:, None], blurs[small[:, 1]][:, None].mT
    total, share = blur[0] @ (difference * weight) @ blur[1], blur[0] @ weight @ blur[1]
    light = total / (share + MATCH_FADE)
    up = _stretch(size[:, 0], small[:, 0], height)[:, None], _stretch(size[:, 1], small[:, 1], width)[:, None].mT
    return up[0] @ light @ up[1]


def _positions(step: Tensor, first: Tensor, count: int) -> Tensor:
    """first + step n for n < count, at multiples of 1/32: [B, count]."""
    at = first[:, None] + step[:, None] * torch.arange(count, device=step.device)
    return (at * STEP).round() / STEP


def _taps(at: Tensor, count: int, cubic: Tensor) -> Tensor:
    """Matrices [B, n, count] that interpolate `count` samples at [B, n], cubic where `cubic` is 1, else linear; edges
    repeat."""
    low, places = at.floor(), torch.arange(count, device=at.device)
    matrix = torch.zeros(*at.shape, count, device=at.device)
    for tap in (-1, 0, 1, 2):
        weight = torch.where(cubic[:, None] > 0, _cubic(at - low - tap), (1 - (at - low - tap).abs()).clamp(min=0))
        matrix += weight[..., None] * ((low + tap).clamp(0, count - 1)[..., None] == places)
    return matrix


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel (1981) with OpenCV's parameter."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * CUBIC - 4 * CUBIC
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _hats(at: Tensor, count: int) -> Tensor:
    """Matrices [B, n, count] that interpolate `count` samples linearly at [B, n], with zeros beyond them."""
    return (1 - (at[..., None] - torch.arange(count, device=at.device)).abs()).clamp(min=0)


def _means(size: Tensor, small: Tensor, most: int) -> Tensor:
    """Matrices [B, MATCH_CELLS, most] of area means: the first size [B] samples to the first small [B] cells."""
    ratio = (size / small)[:, None, None]
    cell = torch.arange(MATCH_CELLS, device=size.device)[:, None]
    sample = torch.arange(most, device=size.device)
    overlap = torch.minimum((cell + 1) * ratio, sample + 1.0) - torch.maximum(cell * ratio, sample + 0.0)
    return overlap.clamp(min=0) / ratio.clamp(min=1e-9) * (cell < small[:, None, None])


def _stretch(size: Tensor, small: Tensor, most: int) -> Tensor:
    """Matrices [B, most, MATCH_CELLS] that interpolate small [B] cells linearly to size [B] samples; edges repeat."""
    at = (torch.arange(most, device=size.device) + 0.5) * (small / size.clamp(min=1))[:, None] - 0.5
    return _hats(torch.minimum(at.clamp(min=0), small[:, None] - 1.0), MATCH_CELLS)


@lru_cache
def gaussian(count: int, sigma: float, device: torch.device) -> Tensor:
    """OpenCV's blur of `count` samples as a matrix [count, count]; beyond the ends they are mirrored."""
    radius = round(4 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    matrix = torch.zeros(count, count, dtype=torch.float64)
    period = max(1, 2 * (count - 1))
    for offset, weight in zip(range(-radius, radius + 1), kernel / kernel.sum(), strict=True):
        for row in range(count):
            place = (row + offset) % period
            matrix[row, min(place, period - place) if count > 1 else 0] += weight
    return matrix.float().to(device)


@lru_cache
def _small_gaussians(device: torch.device) -> Tensor:
    """[MATCH_CELLS + 1, MATCH_CELLS, MATCH_CELLS]: the blur of the first n cells, for every n."""
    table = torch.zeros(MATCH_CELLS + 1, MATCH_CELLS, MATCH_CELLS)
    for count in range(1, MATCH_CELLS + 1):
        table[count, :count, :count] = gaussian(count, MATCH_BLUR, torch.device("cpu"))
    return table.to(device)

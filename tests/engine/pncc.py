"""Projected normalised coordinate code (Zhu et al. 2017): the posed mesh drawn with a fixed colour at every corner.

This is the definition, plain and slow: the reference for `engine.paint.raster`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rasterise(vertices: Tensor, triangles: Tensor, codes: Tensor, height: int, width: int) -> Tensor:
    """Draw vertices [V, 3] (pixels; smaller z is nearer) as float32 [3, height, width] in [0, 1], zero outside.

    A pixel takes its colour at its centre (+0.5) from the nearest triangle of triangles [F, 3], whose corners have
    the colours codes [F, 3, 3]; among equals the earlier triangle wins.
    """
    image = torch.zeros(3, height, width)
    depth = torch.full((height, width), torch.inf)
    for corners, colours in zip(vertices[triangles], codes, strict=True):
        (x0, y0, _), (x1, y1, _), (x2, y2, _) = corners.tolist()
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        left, right = max(0, int(min(x0, x1, x2))), min(width, int(max(x0, x1, x2)) + 1)
        top, bottom = max(0, int(min(y0, y1, y2))), min(height, int(max(y0, y1, y2)) + 1)
        if area == 0 or left >= right or top >= bottom:
            continue
        y, x = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
        a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
        b = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
        weights = torch.stack([a, b, 1 - a - b])
        z = torch.einsum("khw,k->hw", weights, corners[:, 2])
        near = (weights >= 0).all(0) & (z < depth[top:bottom, left:right])
        depth[top:bottom, left:right][near] = z[near]
        image[:, top:bottom, left:right][:, near] = torch.einsum("khw,kc->chw", weights, colours)[:, near]
    return image

"""Drawing the posed mesh on a CPU: which triangle covers a pixel and where in it, then any corner values spread over
it. With the codes as values this is the PNCC of `engine.models.pncc`; with another frame's vertices it is the place in
that frame which shows the same point of the face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Coverage:
    """triangle [H, W] int32 (-1: none) and weights [H, W, 3] float32 of its corners, at pixel centres."""

    triangle: np.ndarray
    weights: np.ndarray

    def window(self, rows: slice, columns: slice) -> Coverage:
        return Coverage(self.triangle[rows, columns], self.weights[rows, columns])


@numba.njit(cache=True, nogil=True)
def _locate(vertices: np.ndarray, triangles: np.ndarray, found: np.ndarray, weights: np.ndarray) -> None:
    height, width = found.shape
    depth = np.full((height, width), np.inf, np.float32)
    for f in range(triangles.shape[0]):
        x0, y0, z0 = vertices[triangles[f, 0]]
        x1, y1, z1 = vertices[triangles[f, 1]]
        x2, y2, z2 = vertices[triangles[f, 2]]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0:
            continue
        left, right = max(0, int(min(x0, x1, x2))), min(width, int(max(x0, x1, x2)) + 1)
        top, bottom = max(0, int(min(y0, y1, y2))), min(height, int(max(y0, y1, y2)) + 1)
        for row in range(top, bottom):
            y = row + 0.5
            for column in range(left, right):
                x = column + 0.5
                a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
                b = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
                c = 1 - a - b
                if a < 0 or b < 0 or c < 0:
                    continue
                z = a * z0 + b * z1 + c * z2
                if z < depth[row, column]:
                    depth[row, column] = z
                    found[row, column] = f
                    weights[row, column, 0], weights[row, column, 1], weights[row, column, 2] = a, b, c


@numba.njit(cache=True, nogil=True)
def _spread(found: np.ndarray, weights: np.ndarray, triangles: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    for n in range(values.shape[0]):
        for row in range(found.shape[0]):
            for column in range(found.shape[1]):
                f = found[row, column]
                if f < 0 or f >= triangles.shape[0]:
                    continue
                a, b, c = weights[row, column]
                u, v, w = triangles[f]
                for k in range(values.shape[2]):
                    out[n, k, row, column] = a * values[n, u, k] + b * values[n, v, k] + c * values[n, w, k]


def locate(vertices: np.ndarray, triangles: np.ndarray, height: int, width: int) -> Coverage:
    """Cover [height, width] pixels with vertices [V, 3] float32 (smaller z is nearer) and triangles [F, 3]; among
    equals the earlier triangle wins."""
    found = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    _locate(vertices, triangles, found, weights)
    return Coverage(found, weights)


def spread(
    coverage: Coverage, triangles: np.ndarray, values: np.ndarray, *, empty: np.ndarray | None = None
) -> np.ndarray:
    """Interpolate values [N, V, K] float32 at the corners of triangles [F, 3] to [N, K, H, W]; `empty` [K, H, W]
    (default 0) where no triangle is, or one beyond the F given."""
    shape = (len(values), values.shape[2], *coverage.triangle.shape)
    out = np.zeros(shape, np.float32) if empty is None else np.broadcast_to(empty, shape).astype(np.float32)
    _spread(coverage.triangle, coverage.weights, triangles, np.ascontiguousarray(values, np.float32), out)
    return out


def spread_codes(coverage: Coverage, codes: np.ndarray) -> np.ndarray:
    """PNCC float32 [3, H, W] of codes [F, 3, 3], which every triangle has of its own."""
    return spread(coverage, np.arange(codes.shape[0] * 3).reshape(-1, 3), codes.reshape(1, -1, 3))[0]


def rasterise(vertices: np.ndarray, triangles: np.ndarray, codes: np.ndarray, height: int, width: int) -> np.ndarray:
    """PNCC float32 [3, height, width] of vertices [V, 3] in pixels; see `engine.models.pncc.rasterise`."""
    return spread_codes(locate(vertices, triangles, height, width), codes)


class Rasteriser(Protocol):
    """Draws batches of meshes of one topology on a device; what goes in and comes out are its tensors."""

    def locate(self, vertices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Vertices [B, V, 3] float32 to triangle [B, H, W] int32 (-1: none) and weights [B, H, W, 3]."""

    def spread(self, found: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """values [B, V, K] float32 at the vertices to [B, K, H, W], 0 where no triangle is."""

    def codes(self, found: Tensor, weights: Tensor, codes: Tensor) -> Tensor:
        """The PNCC [B, 3, H, W] of codes [F, 3, 3], which every triangle has of its own."""


class CpuRasteriser:
    """`Rasteriser` on the CPU, one mesh after the other: the reference for `engine.paint.gpu.raster`."""

    def __init__(self, triangles: Tensor):
        self._triangles = triangles.numpy()

    def locate(self, vertices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        drawn = [locate(mesh, self._triangles, height, width) for mesh in vertices.numpy()]
        return (
            torch.from_numpy(np.stack([coverage.triangle for coverage in drawn])),
            torch.from_numpy(np.stack([coverage.weights for coverage in drawn])),
        )

    def spread(self, found: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        rows = zip(_coverages(found, weights), values.numpy(), strict=True)
        return torch.from_numpy(np.stack([spread(coverage, self._triangles, own[None])[0] for coverage, own in rows]))

    def codes(self, found: Tensor, weights: Tensor, codes: Tensor) -> Tensor:
        drawn = [spread_codes(coverage, codes.numpy()) for coverage in _coverages(found, weights)]
        return torch.from_numpy(np.stack(drawn))


def _coverages(found: Tensor, weights: Tensor) -> list[Coverage]:
    return [Coverage(f, w) for f, w in zip(found.numpy(), weights.numpy(), strict=True)]

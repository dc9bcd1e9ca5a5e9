"""The rasteriser for the CPU: the triangle of the posed mesh that covers each pixel, barycentric weights, and values
at the triangles' corners interpolated over the pixels.

With the model's codes as values this draws the PNCC (projected normalised coordinate code, Zhu et al. 2017); with
another frame's vertices it gives the place in that frame that shows the same point of the face. Its GPU counterpart is
`engine.paint.gpu.raster`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Coverage:
    """triangle [H, W] int32 (-1: none) and weights [H, W, 3] float32 of its corners, at pixel centres."""

    triangle: np.ndarray
    weights: np.ndarray

    def window(self, rows: slice, columns: slice) -> Coverage:
        return Coverage(self.triangle[rows, columns], self.weights[rows, columns])


@numba.njit(cache=True, nogil=True)
def _locate(vertices: np.ndarray, triangles: np.ndarray, triangle: np.ndarray, weights: np.ndarray) -> None:
    height, width = triangle.shape
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
                    triangle[row, column] = f
                    weights[row, column, 0], weights[row, column, 1], weights[row, column, 2] = a, b, c


@numba.njit(cache=True, nogil=True)
def _spread(
    triangle: np.ndarray, weights: np.ndarray, triangles: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    for n in range(values.shape[0]):
        for row in range(triangle.shape[0]):
            for column in range(triangle.shape[1]):
                f = triangle[row, column]
                if f < 0 or f >= triangles.shape[0]:
                    continue
                a, b, c = weights[row, column]
                u, v, w = triangles[f]
                for k in range(values.shape[2]):
                    out[n, k, row, column] = a * values[n, u, k] + b * values[n, v, k] + c * values[n, w, k]


def locate(vertices: np.ndarray, triangles: np.ndarray, height: int, width: int) -> Coverage:
    """Cover [height, width] pixels with vertices [V, 3] float32 (smaller z is nearer) and triangles [F, 3]; among
    equals the earlier triangle wins."""
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 3), np.float32)
    _locate(vertices, triangles, triangle, weights)
    return Coverage(triangle, weights)


def spread(
    coverage: Coverage, triangles: np.ndarray, values: np.ndarray, *, empty: np.ndarray | None = None
) -> np.ndarray:
    """Interpolate values [N, V, K] float32 at the corners of triangles [F, 3] to [N, K, H, W]. Pixels without a
    triangle, or with an index of F or more, take `empty` [K, H, W] (default 0)."""
    shape = (len(values), values.shape[2], *coverage.triangle.shape)
    out = np.zeros(shape, np.float32) if empty is None else np.broadcast_to(empty, shape).astype(np.float32)
    _spread(coverage.triangle, coverage.weights, triangles, np.ascontiguousarray(values, np.float32), out)
    return out


def spread_codes(coverage: Coverage, codes: np.ndarray) -> np.ndarray:
    """PNCC float32 [3, H, W] of codes [F, 3, 3], a colour for each corner of each triangle."""
    return spread(coverage, np.arange(codes.shape[0] * 3).reshape(-1, 3), codes.reshape(1, -1, 3))[0]

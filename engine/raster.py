"""The PNCC of `engine.models.pncc`, compiled for CPUs: about a millisecond for a 256 x 256 crop."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, fastmath=False)
def _draw(vertices: np.ndarray, triangles: np.ndarray, codes: np.ndarray, image: np.ndarray, depth: np.ndarray) -> None:
    height, width = depth.shape
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
                    for k in range(3):
                        image[k, row, column] = a * codes[f, 0, k] + b * codes[f, 1, k] + c * codes[f, 2, k]


def rasterise(vertices: np.ndarray, triangles: np.ndarray, codes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw vertices [V, 3] float32 in pixels as PNCC float32 [3, height, width]; see `engine.models.pncc.rasterise`."""
    image = np.zeros((3, height, width), np.float32)
    _draw(vertices, triangles, codes, image, np.full((height, width), np.inf, np.float32))
    return image

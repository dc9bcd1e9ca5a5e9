"""The texture of a picture in one pass: references are sampled through the mesh and mixed by their shares.

The fast equivalent of OpenCV's remap for each reference and `engine.models.renderer.mixed`. Attention leaves most
references out of most cells, so that few samples are taken. It releases the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np

from engine.paint.raster import Coverage
from engine.paint.references import FACE_REFERENCES, LIP_REFERENCES

A = np.float32(-0.75)  # of the cubic kernel (Keys 1981), as in OpenCV and torch
CROPS = LIP_REFERENCES + FACE_REFERENCES
FAINT = 1e-3  # sum of the shares at four centres of cells
U = np.uint64
STILL = np.float32(1 / 256)  # of a pixel: where the base frame has not moved, its pixels are copied


@numba.njit(nogil=True, inline="always", fastmath=True)
def _cubic(t: np.float32) -> tuple[np.float32, ...]:
    """The weights of the pixels at -1, 0, 1, 2 for a place at t in [0, 1)."""
    s = np.float32(1) - t
    before, behind = A * t * s * s, A * s * t * t
    here = ((A + np.float32(2)) * t - (A + np.float32(3))) * t * t + np.float32(1)
    return before, here, np.float32(1) - before - here - behind, behind


@numba.njit(nogil=True, inline="always", fastmath=True)
def _sample(
    flat: np.ndarray, height: int, width: int, x: np.float32, y: np.float32, line: np.ndarray
) -> tuple[np.float32, ...]:
    """The colour at x and y of an image of height x width x 3 bytes, flat; whole numbers are centres of pixels. line:
    room for 4 pixels [12]."""
    column, row = math.floor(x + STILL), math.floor(y + STILL)
    u, v = x - np.float32(column), y - np.float32(row)
    stride = 3 * width
    v0, v1, v2, v3 = _cubic(v)
    if 1 <= column < width - 2 and 1 <= row < height - 2:
        # Unsigned, as a signed index is checked for being negative, which costs a third of the time.
        first = U((row - 1) * stride + 3 * (column - 1))
        second, third, fourth = first + U(stride), first + U(2 * stride), first + U(3 * stride)
        if u < STILL and v < STILL:
            copied = second + U(3)
            return np.float32(flat[copied]), np.float32(flat[copied + U(1)]), np.float32(flat[copied + U(2)])
        for i in range(12):
            k = U(i)
            upper = v0 * np.float32(flat[first + k]) + v1 * np.float32(flat[second + k])
            line[k] = upper + v2 * np.float32(flat[third + k]) + v3 * np.float32(flat[fourth + k])
    else:
        above, below = min(max(row - 1, 0), height - 1) * stride, min(max(row + 2, 0), height - 1) * stride
        here, under = min(max(row, 0), height - 1) * stride, min(max(row + 1, 0), height - 1) * stride
        for tap in range(4):
            at = 3 * min(max(column - 1 + tap, 0), width - 1)
            for c in range(3):
                line[3 * tap + c] = (
                    v0 * np.float32(flat[above + at + c])
                    + v1 * np.float32(flat[here + at + c])
                    + v2 * np.float32(flat[under + at + c])
                    + v3 * np.float32(flat[below + at + c])
                )
    u0, u1, u2, u3 = _cubic(u)
    red = u0 * line[U(0)] + u1 * line[U(3)] + u2 * line[U(6)] + u3 * line[U(9)]
    green = u0 * line[U(1)] + u1 * line[U(4)] + u2 * line[U(7)] + u3 * line[U(10)]
    blue = u0 * line[U(2)] + u1 * line[U(5)] + u2 * line[U(8)] + u3 * line[U(11)]
    # A cubic overshoots at edges; stored pixels do not.
    low, high = np.float32(0), np.float32(255)
    return min(max(red, low), high), min(max(green, low), high), min(max(blue, low), high)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _texture(
    triangle: np.ndarray,
    weights: np.ndarray,
    triangles: np.ndarray,
    corner_x: np.float32,
    corner_y: np.float32,
    meshes: np.ndarray,
    crops: tuple[np.ndarray, ...],
    shares: np.ndarray,
    cell_px: int,
    out: np.ndarray,
) -> None:
    height, width = triangle.shape
    count, rows, columns = shares.shape
    line = np.empty(12, np.float32)
    half = np.float32(0.5)
    for n in range(count):
        crop = crops[n]
        flat, mesh = crop.reshape(-1), meshes[n]
        for top in range(-(cell_px // 2), height, cell_px):  # blocks between the centres of four cells
            upper, lower = max(0, (top + cell_px // 2) // cell_px - 1), min(rows - 1, (top + cell_px // 2) // cell_px)
            for left in range(-(cell_px // 2), width, cell_px):
                before = max(0, (left + cell_px // 2) // cell_px - 1)
                behind = min(columns - 1, (left + cell_px // 2) // cell_px)
                north_west, north_east = shares[n, upper, before], shares[n, upper, behind]
                south_west, south_east = shares[n, lower, before], shares[n, lower, behind]
                if north_west + north_east + south_west + south_east < FAINT:
                    continue
                for row in range(max(0, top), min(height, top + cell_px)):
                    down = (np.float32(row - top) + half) / np.float32(cell_px)
                    west = north_west + down * (south_west - north_west)
                    east = north_east + down * (south_east - north_east)
                    i = U(row)
                    for column in range(max(0, left), min(width, left + cell_px)):
                        j = U(column)
                        share = west + (np.float32(column - left) + half) / np.float32(cell_px) * (east - west)
                        f = triangle[i, j]
                        x, y = np.float32(column) + corner_x, np.float32(row) + corner_y
                        if f >= 0:
                            face = U(f)
                            a, b, c = weights[i, j, U(0)], weights[i, j, U(1)], weights[i, j, U(2)]
                            p, q, s = U(triangles[face, U(0)]), U(triangles[face, U(1)]), U(triangles[face, U(2)])
                            x = a * mesh[p, U(0)] + b * mesh[q, U(0)] + c * mesh[s, U(0)] - half
                            y = a * mesh[p, U(1)] + b * mesh[q, U(1)] + c * mesh[s, U(1)] - half
                        red, green, blue = _sample(flat, crop.shape[0], crop.shape[1], x, y, line)
                        out[i, j, U(0)] += share * red
                        out[i, j, U(1)] += share * green
                        out[i, j, U(2)] += share * blue


def texture(
    coverage: Coverage,
    triangles: np.ndarray,
    corner: tuple[int, int],
    meshes: np.ndarray,
    crops: Sequence[np.ndarray],
    shares: np.ndarray,
) -> np.ndarray:
    """The mixed texture [H, W, 3] float32 in [0, 255] of the window that `coverage` covers with triangles [F, 3].

    crops: at most CROPS images [S, S', 3] uint8, with vertices meshes [N, V, 2] float32 in their pixels.  shares:
    [N, rows, columns] float32 of the crops in the cells of the window, interpolated between the centres of cells.
    corner: left and top of the window in the crops; pixels without a triangle are sampled at their own place.
    """
    height, width = coverage.triangle.shape
    out = np.zeros((height, width, 3), np.float32)
    padded = (*crops, *[crops[0]] * (CROPS - len(crops)))  # compiled once, for one number of crops
    cell_px = height // shares.shape[1]
    left, top = np.float32(corner[0]), np.float32(corner[1])
    _texture(coverage.triangle, coverage.weights, triangles, left, top, meshes, padded, shares, cell_px, out)
    return out

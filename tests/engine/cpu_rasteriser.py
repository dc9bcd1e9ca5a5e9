"""The GPU's rasteriser protocol on the CPU, so that the GPU's painter can be tested without a GPU."""

from __future__ import annotations

import numpy as np
import torch

from engine.paint.raster import Coverage, locate, spread, spread_codes


class CpuRasteriser:
    """`engine.paint.gpu.raster.Rasteriser` of meshes with triangles [F, 3], one mesh after the other."""

    def __init__(self, triangles):
        self.triangles = triangles

    def locate(self, vertices, height, width):
        drawn = [locate(mesh, self.triangles, height, width) for mesh in vertices.numpy()]
        return stacked(coverage.triangle for coverage in drawn), stacked(coverage.weights for coverage in drawn)

    def spread(self, triangle, weights, values):
        rows = zip(coverages(triangle, weights), values.numpy(), strict=True)
        return stacked(spread(coverage, self.triangles, row[None])[0] for coverage, row in rows)

    def codes(self, triangle, weights, codes):
        return stacked(spread_codes(coverage, codes.numpy()) for coverage in coverages(triangle, weights))


def coverages(triangle, weights):
    return [Coverage(t, w) for t, w in zip(triangle.numpy(), weights.numpy(), strict=True)]


def stacked(arrays):
    return torch.from_numpy(np.stack(list(arrays)))

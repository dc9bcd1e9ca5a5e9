"""The fast rasteriser draws what the plain one defines, and its coverage finds places again."""

from __future__ import annotations

import numpy as np
import pncc
import pytest
import torch

from engine.models.morphable import CROP_PX, project
from engine.models.weights import load_face_model
from engine.paint.raster import locate, spread, spread_codes


def drawn_of(vertices, triangles, codes, height, width):
    return spread_codes(locate(vertices, triangles, height, width), codes)


def reference(vertices, triangles, codes, height, width):
    drawn = pncc.rasterise(
        torch.from_numpy(vertices), torch.from_numpy(triangles), torch.from_numpy(codes), height, width
    )
    return drawn.numpy()


def same(vertices, triangles, codes, height=CROP_PX, width=CROP_PX, tolerated=0):
    """The images agree but for `tolerated` pixels on triangle edges, where rounding decides."""
    plain = reference(vertices, triangles, codes, height, width)
    fast = drawn_of(vertices, triangles, codes, height, width)
    assert fast.dtype == np.float32 and fast.shape == (3, height, width) and np.isfinite(fast).all()
    different = (np.abs(fast - plain) > 1e-4).any(0).sum()
    assert different <= tolerated, f"{different} pixels differ"
    return fast


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.mark.parametrize(
    "pose",
    [
        (0.0, 0.0, 0.0, 0.38, 0.5, 0.25),
        (0.2, -0.5, 0.1, 0.4, 0.47, 0.25),
        (-0.3, 1.4, 0.0, 0.4, 0.5, 0.3),  # in profile: thin and hidden triangles
        (0.0, 0.0, 0.3, 2.5, 0.1, 0.9),  # partly outside
    ],
)
def test_a_posed_face_is_drawn_as_the_reference_draws_it(model, pose):
    beta = torch.from_numpy(np.random.default_rng(0).normal(0, 1, model.expression_basis.shape[0]).astype(np.float32))
    vertices = model.vertices(torch.zeros(model.shape_basis.shape[0]), beta)
    mesh = project(vertices, torch.tensor(pose)).numpy()
    drawn = same(mesh, model.triangles.numpy(), model.codes.numpy(), tolerated=3)
    assert (drawn.sum(0) > 0).mean() > 0.05 and drawn.min() >= 0 and drawn.max() <= 1.0001


def corners(*points):
    return np.array(points, np.float32)


CODES = np.arange(18, dtype=np.float32).reshape(2, 3, 3) / 18


@pytest.mark.parametrize(
    "vertices",
    [
        corners((5, 5, 0), (5, 5, 0), (5, 5, 0), (5, 5, 0)),  # a point
        corners((0, 0, 0), (10, 10, 0), (20, 20, 0), (30, 30, 0)),  # a line
        corners((-90, -90, 0), (-50, -80, 0), (-70, -20, 0), (-60, -60, 0)),  # beside the image
        corners((500, 5, 0), (600, 5, 0), (550, 900, 0), (700, 7, 0)),
        corners((-1e6, -1e6, 0), (1e6, -1e6, 0), (0, 1e6, 0), (3, 4, -1)),  # around the image
        corners((31, 31, 0), (32.4, 31, 0), (32.4, 33, 0), (31, 33, 0)),  # at its corner
    ],
)
def test_degenerate_and_distant_meshes_are_drawn_as_the_reference_draws_them(vertices):
    same(vertices, np.array([[0, 1, 2], [1, 2, 3]]), CODES, 32, 32)


def test_the_nearer_triangle_hides_the_farther_one_in_either_order():
    near, far = corners((0, 0, 1), (32, 0, 1), (0, 32, 1)), corners((0, 0, 5), (32, 0, 5), (0, 32, 5))
    codes = np.stack([np.full((3, 3), 0.25, np.float32), np.full((3, 3), 0.75, np.float32)])
    triangles = np.array([[0, 1, 2], [3, 4, 5]])
    assert drawn_of(np.concatenate([near, far]), triangles, codes, 32, 32)[0, 5, 5] == 0.25
    assert drawn_of(np.concatenate([far, near]), triangles, codes, 32, 32)[0, 5, 5] == 0.75


def test_among_equals_the_earlier_triangle_wins():
    flat = corners((0, 0, 1), (32, 0, 1), (0, 32, 1))
    codes = np.stack([np.full((3, 3), 0.25, np.float32), np.full((3, 3), 0.75, np.float32)])
    assert drawn_of(flat, np.array([[0, 1, 2], [0, 1, 2]]), codes, 32, 32)[0, 5, 5] == 0.25


def test_a_pixel_finds_its_own_place_through_the_mesh(model):
    mesh = project(model.mean, torch.tensor([0.1, 0.3, 0.0, 0.38, 0.5, 0.25])).numpy()
    triangles = model.triangles.numpy()
    coverage = locate(mesh, triangles, CROP_PX, CROP_PX)
    places = spread(coverage, triangles, mesh[None, :, :2], empty=np.full((2, CROP_PX, CROP_PX), -1.0))[0]
    y, x = np.mgrid[0:CROP_PX, 0:CROP_PX] + 0.5
    covered = coverage.triangle >= 0
    assert np.abs(places - np.stack([x, y]))[:, covered].max() < 0.01
    assert (places[:, ~covered] == -1).all()


def test_triangles_without_values_are_left_empty():
    vertices = corners((0, 0, 1), (32, 0, 1), (0, 32, 1), (32, 32, 1))
    coverage = locate(vertices, np.array([[0, 1, 2], [1, 3, 2]]), 32, 32)
    out = spread(coverage, np.array([[0, 1, 2]]), np.ones((1, 4, 2), np.float32), empty=np.full((2, 32, 32), 7.0))
    assert (out[0, :, 2, 2] == 1).all() and (out[0, :, 30, 30] == 7).all()
    assert coverage.window(slice(30, 32), slice(30, 32)).triangle.shape == (2, 2)

"""The face model: linear in its coefficients, posed and projected as documented, shipped as a sane asset."""

from __future__ import annotations

import math

import pytest
import torch

from engine.models.morphable import (
    CROP_PX,
    FACE_OVAL,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE,
    VERTICES,
    mouth_opening,
    project,
    rotation_matrix,
)
from engine.models.weights import load_face_model


@pytest.fixture(scope="module")
def model():
    return load_face_model()


def coefficients(model, seed, *lead):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(*lead, len(model.shape_basis), generator=generator),
        torch.randn(*lead, len(model.expression_basis), generator=generator),
    )


def test_vertices_are_linear_in_shape_and_expression(model):
    (a, b), (c, d) = coefficients(model, 0, 2, 3), coefficients(model, 1, 2, 3)
    assert model.vertices(a, b).shape == (2, 3, VERTICES, 3)
    sum_of_both = model.vertices(a, b) + model.vertices(c, d) - model.mean
    torch.testing.assert_close(model.vertices(a + c, b + d), sum_of_both, atol=1e-5, rtol=1e-5)
    zero = torch.zeros_like(a[0, 0]), torch.zeros_like(b[0, 0])
    assert torch.equal(model.vertices(*zero), model.mean)
    torch.testing.assert_close(model.vertices(a, b), model.mean + model.shape(a) + model.expression(b))


def test_rotations_turn_by_the_length_of_their_vector():
    about_z = rotation_matrix(torch.tensor([0.0, 0.0, math.pi / 2]))
    torch.testing.assert_close(about_z @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    about_y = rotation_matrix(torch.tensor([0.0, math.pi / 2, 0.0]))
    torch.testing.assert_close(about_y @ torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    some = rotation_matrix(torch.randn(5, 3))
    torch.testing.assert_close(some @ some.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    assert (torch.linalg.det(some) > 0).all() and torch.equal(rotation_matrix(torch.zeros(3)), torch.eye(3))


def test_projection_scales_and_shifts_in_crop_widths():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 2]])
    out = project(points, torch.tensor([0.0, 0, 0, 0.5, 0.25, 0.75]))
    expected = torch.tensor([[0.25, 0.75, 0], [0.75, 0.75, 0], [0.25, 1.25, 1]]) * CROP_PX
    torch.testing.assert_close(out, expected)
    batched = project(points.expand(4, 3, 3), torch.randn(4, 6))
    assert batched.shape == (4, 3, 3)


def test_the_mouth_opening_is_the_height_between_the_inner_lips(model):
    opened = model.mean.clone()
    for v in (87, 14, 317):
        opened[v] = opened[{87: 82, 14: 13, 317: 312}[v]] + torch.tensor([0.0, 0.3, 0.0])
    assert float(mouth_opening(opened)) == pytest.approx(0.3)
    assert mouth_opening(opened.expand(2, 5, -1, -1)).shape == (2, 5)


def test_the_asset_is_a_face_that_looks_at_the_camera(model):
    mean, eyes = model.mean, model.mean[[33, 263]]
    assert float(torch.linalg.vector_norm(eyes[1] - eyes[0])) == pytest.approx(1, abs=0.05)
    assert eyes[1, 0] > eyes[0, 0] and mean[152, 1] > mean[10, 1]  # x right, y down
    assert mean[1, 2] < mean[[234, 454], 2].min()  # the nose is nearest, z points away
    assert 0 < float(mouth_opening(mean)) < 0.2


def test_the_lower_face_holds_lips_and_chin_and_no_eye(model):
    assert model.lower.dtype == torch.bool and model.lower.shape == (VERTICES,)
    assert model.lower[[*LIPS_OUTER, *LIPS_INNER, 152, 17, 199]].all()
    assert not model.lower[[*LEFT_EYE, *RIGHT_EYE, 10, 1, 6, 234, 454]].any()


def test_triangles_cover_the_mesh_with_mouth_and_eyes_closed(model):
    assert model.triangles.min() == 0 and model.triangles.max() == VERTICES - 1
    assert model.codes.shape == (len(model.triangles), 3, 3)
    assert model.codes.min() >= 0 and model.codes.max() <= 1
    inside = {*LIPS_INNER}
    mouth = [i for i, t in enumerate(model.triangles.tolist()) if inside.issuperset(t)]
    assert len(mouth) == len(LIPS_INNER) - 2 and (model.codes[mouth][..., 2] == 0).all()
    edges = {}
    for a, b, c in model.triangles.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            edges[frozenset(edge)] = edges.get(frozenset(edge), 0) + 1
    border = {v for edge, count in edges.items() if count == 1 for v in edge}
    assert border == set(FACE_OVAL)


def test_the_model_survives_a_file(model, tmp_path):
    model.save(tmp_path / "face.safetensors")
    again = load_face_model(tmp_path / "face.safetensors")
    assert all(torch.equal(getattr(model, name), getattr(again, name)) for name in model.__dataclass_fields__)

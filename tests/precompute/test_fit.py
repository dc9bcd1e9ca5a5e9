"""The fit explains landmarks that the face model can make, smoothly, and says how well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.models.morphable import mouth_opening, project
from engine.models.weights import load_face_model
from precompute.fit import crop_boxes, fit, rigid_poses, to_crop

FRAMES = 60


@pytest.fixture(scope="module")
def talking():
    """Landmarks [T, 468, 3] in frame pixels of a synthetic person who nods and talks, and the truth behind them."""
    model = load_face_model()
    generator = torch.Generator().manual_seed(0)
    alpha = (torch.randn(1, 50, generator=generator) * 0.5).expand(FRAMES, -1)
    time = torch.arange(FRAMES)[:, None] / 25
    beta = torch.randn(1, 50, generator=generator) * torch.sin(
        2 * torch.pi * time * torch.rand(1, 50, generator=generator) * 2
    )
    pose = torch.zeros(FRAMES, 6)
    pose[:, 0] = 0.1 * torch.sin(2 * time[:, 0])
    pose[:, 1] = 0.3 * torch.sin(time[:, 0])
    pose[:, 3:] = torch.tensor([0.5, 1.25, 1.0])
    vertices = model.vertices(alpha, beta)
    return model, project(vertices, pose).numpy(), vertices, pose


@pytest.fixture(scope="module")
def fitted(talking):
    return fit(talking[1], talking[0])


def test_landmarks_are_explained_to_a_fraction_of_a_pixel(fitted):
    assert fitted.error_px.mean() < 0.5
    assert fitted.lip_error_px.mean() < 0.5


def test_the_stated_error_is_that_of_the_coefficients(talking, fitted):
    model, points, _, _ = talking
    projected = project(
        model.vertices(torch.from_numpy(fitted.alpha), torch.from_numpy(fitted.beta)), torch.from_numpy(fitted.pose)
    )
    apart = (projected.numpy() - to_crop(points, fitted.crop))[..., :2]
    assert np.allclose(np.sqrt((apart**2).sum(-1).mean(-1)), fitted.error_px, atol=1e-3)


def test_mouth_opening_and_rotation_are_recovered(talking, fitted):
    model, _, vertices, pose = talking
    opening = mouth_opening(model.vertices(torch.from_numpy(fitted.alpha), torch.from_numpy(fitted.beta)))
    assert np.corrcoef(opening, mouth_opening(vertices))[0, 1] > 0.99
    assert np.abs(fitted.pose[:, :3] - pose[:, :3].numpy()).max() < 0.06


def test_noise_on_landmarks_is_smoothed_not_followed(talking):
    model, points, vertices, _ = talking
    noisy = points + np.random.default_rng(0).normal(0, 0.7, points.shape)
    smooth = fit(noisy, model, iterations=40)
    fitted = model.vertices(torch.from_numpy(smooth.alpha), torch.from_numpy(smooth.beta)).numpy()
    jitter = np.abs(np.diff(fitted, 2, axis=0)).mean()
    scale = float(fit(points, model, iterations=1).pose[0, 3]) * smooth.crop[0, 2]
    assert jitter * scale < 0.5 * np.abs(np.diff(noisy - points, 2, axis=0)).mean()
    assert vertices.shape == fitted.shape


def test_a_moved_picture_moves_only_the_crop(talking, fitted):
    model, points, _, _ = talking
    moved = fit(points + np.array([37, -12, 0], np.float32), model)
    assert np.array_equal(moved.crop, fitted.crop + np.array([37, -12, 0]))
    assert np.allclose(moved.beta, fitted.beta, atol=0.02)


def test_crops_are_square_follow_smoothly_and_hold_the_face(talking):
    model, points, _, _ = talking
    boxes = crop_boxes(*rigid_poses(points, model))
    inside = to_crop(points, boxes)[..., :2]
    assert boxes.dtype == np.int32
    assert inside.min() > 0
    assert inside.max() < 256
    assert np.abs(np.diff(boxes[:, 2])).max() <= 2

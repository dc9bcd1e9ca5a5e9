"""Measures of mouths are best for the truth, and tell too little and too much motion apart."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from engine.models.morphable import project
from engine.models.weights import load_face_model
from training.evaluate import lips as measures
from training.evaluate.ceiling import ceiling
from training.evaluate.dists import Dists
from training.evaluate.halves import halves_of
from training.evaluate.measures import signed
from training.evaluate.textures import BOX_PX, detail, mouth_box
from training.geometry.corpus import Example

FRAMES = 200
TIME = torch.arange(FRAMES) / 25
OPENING = 0.1 + 0.05 * torch.sin(2 * math.pi * 2.5 * TIME) * torch.sin(2 * math.pi * 0.4 * TIME)


@pytest.fixture(scope="module")
def moving():
    """Lip landmarks [FRAMES, 40, 3] that move smoothly."""
    phases = torch.linspace(0, 3, 40)[:, None] + torch.arange(3)
    return 0.02 * torch.sin(2 * math.pi * 2 * TIME[:, None, None] + phases)


def test_deviation_and_jerk_grow_with_the_motion(moving):
    for measure in (measures.deviation, measures.jerk):
        assert measure(1.5 * moving) == pytest.approx(1.5 * measure(moving), rel=1e-4)
        assert measure(moving[:1].expand(FRAMES, -1, -1)) == 0


def test_shapes_of_one_distribution_are_near_and_moved_ones_far(moving):
    same = measures.shape_distance(moving[::2], moving[1::2])
    assert same < 0.1 * measures.shape_distance(moving[::2], 1.5 * moving[1::2])
    assert measures.shape_distance(moving, moving + 0.01) == pytest.approx(80, rel=0.01)  # 40 landmarks, x and y


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_misalignment_is_the_delay(frames):
    delayed = OPENING.roll(frames)
    assert measures.misalignment_ms(delayed[20:-20], OPENING[20:-20]) == pytest.approx(40 * frames, abs=12)


def test_misalignment_does_not_depend_on_how_far_the_mouth_opens():
    assert measures.misalignment_ms(0.3 * OPENING, OPENING) < 1


def test_lips_that_follow_the_level_of_the_sound_correlate_with_it():
    loud = np.repeat(np.tile([0.01, 0.1], FRAMES // 50), 25 * 640)
    pcm = loud * np.random.default_rng(0).standard_normal(len(loud))
    speed = torch.from_numpy(np.repeat(np.tile([0.1, 1.0], FRAMES // 50), 25))
    lips = (speed.cumsum(0) % 7)[:, None, None].expand(-1, 40, 3).float()
    assert measures.loudness_correlation(pcm, lips) > 0.8


def test_a_clip_is_halved_both_ways_or_too_short():
    def example(frames):
        return Example(None, torch.zeros(50), torch.zeros(frames, 50), 0, np.zeros(0, np.float32))

    assert halves_of(example(149)) == []
    (first, judged), swapped = halves_of(example(151))
    assert (first, judged) == (slice(0, 75), slice(75, 151)) and swapped == (judged, first)


def test_the_ceiling_of_people_with_the_same_motion_is_one_and_of_strangers_low():
    generator = torch.Generator().manual_seed(0)
    words = [torch.randn(30, 8, generator=generator).cumsum(0) for _ in range(4)]
    alike = [(f"person {i}", word, word[:, 0]) for word in words for i in range(3)]
    assert ceiling(alike, pairs=8)["best_predictor"] == pytest.approx(1)
    own = [(name, word, torch.randn(30, generator=generator)) for name, word, _ in alike]
    assert ceiling(own, pairs=8)["correlation_mean"] < 0.5
    assert ceiling(alike[:1]) == {"pairs": 0}


@pytest.fixture(scope="module")
def mouth():
    """A picture [256, 256, 3] of noise, and the mesh of a face with an open mouth in it."""
    model = load_face_model()
    beta = torch.zeros(len(model.expression_basis))
    gaps = model.expression_basis[:, 14, 1] - model.expression_basis[:, 13, 1]
    beta = 0.2 * gaps / gaps.square().sum()
    pose = torch.tensor([0.0, 0.0, 0.2, 0.38, 0.5, 0.25])
    mesh = project(model.vertices(torch.zeros(len(model.shape_basis)), beta), pose).numpy()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5), mesh


def test_the_box_is_around_the_lips_and_the_cavity_inside(mouth):
    box, cavity = mouth_box(*mouth)
    assert box.shape == (BOX_PX, BOX_PX, 3)
    y, x = np.nonzero(cavity)
    assert len(x) > 100 and abs(x.mean() - BOX_PX / 2) < 6 and abs(y.mean() - BOX_PX / 2) < 12


def test_a_blurred_mouth_has_less_detail(mouth):
    image, mesh = mouth
    sharp, soft = (detail(*mouth_box(picture, mesh)) for picture in (image, cv2.GaussianBlur(image, (0, 0), 2)))
    assert soft < 0.5 * sharp


def test_dists_is_nothing_for_the_truth_and_grows_with_blur(mouth):
    dists, image = Dists(), mouth[0][64:128, 64:128]
    truth, soft, softer = (signed(x)[None] for x in (image, *(cv2.GaussianBlur(image, (0, 0), s) for s in (1, 4))))
    with torch.inference_mode():
        same, near, far = (float(dists(other, truth)) for other in (truth, soft, softer))
    assert abs(same) < 1e-5 < near < far

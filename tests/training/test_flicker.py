"""Flicker is nothing for a still picture, grows with noise, and is measured on what the engine's painter paints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.models.renderer import DualAttentionRenderer, RendererConfig
from engine.models.weights import load_face_model
from engine.paint.shape import Shape
from training.evaluate.contact_sheet import attention_strip, sheet_row
from training.evaluate.flicker import Flicker, LaidPictures, Sequence, driven_sequences
from training.renderer.samples import SampleMaker

POSE = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25])


@pytest.fixture(scope="module")
def model():
    return load_face_model()


class Talking:
    """What `ClipFaces` offers, in memory: smooth noise that stays where it is, and a mouth that opens and closes."""

    def __init__(self, model, frames=24):
        phase = torch.arange(frames) / 2.5
        self.index = np.arange(frames)
        self.alpha = torch.zeros(frames, len(model.shape_basis))
        self.beta = torch.zeros(frames, len(model.expression_basis))
        self.beta[:, 0] = 3 * phase.sin()
        self.poses = POSE.expand(frames, 6)
        self.canonical = model.vertices(self.alpha, self.beta)
        self.neutral = model.mean.expand(frames, -1, -1)
        self.opening = phase.sin().numpy()
        self._image = np.random.default_rng(0).integers(90, 160, (256, 256, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.index)

    def crop(self, row):
        return self._image


def test_a_still_picture_does_not_flicker_and_a_noisy_one_does(model):
    faces, flicker = Talking(model), Flicker(model)
    shape = Shape.posed(faces.canonical[0], faces.neutral[0], faces.poses[0])
    still = flicker(Sequence([faces.crop(0)] * 3, [shape] * 3))
    assert still["temporal_lpips"] == pytest.approx(0, abs=1e-5) and still["still_difference"] < 0.6
    noisy = [faces.crop(0) + np.uint8(i % 2 * 20) for i in range(3)]
    assert flicker(Sequence(noisy, [shape] * 3))["still_difference"] == pytest.approx(20, abs=1)


def test_a_driven_sequence_has_the_upper_face_of_its_base_frames_and_other_mouths(model):
    torch.manual_seed(0)
    network = DualAttentionRenderer(RendererConfig()).eval().requires_grad_(False)
    sequences = driven_sequences(network, Talking(model), model, frames=4)
    painted, recorded = sequences["ours"], sequences["recorded"]
    assert len(painted.crops) == len(recorded.crops) == 4
    for image, true in zip(painted.crops, recorded.crops, strict=True):
        assert np.array_equal(image[:100], true[:100]) and not np.array_equal(image, true)
    assert not np.allclose(painted.shapes[0].mesh, recorded.shapes[0].mesh, atol=0.5)


def test_at_half_rate_every_second_picture_is_laid_from_the_one_before_it(model):
    torch.manual_seed(0)
    network = DualAttentionRenderer(RendererConfig()).eval().requires_grad_(False)
    sequences = driven_sequences(network, Talking(model), model, frames=4)
    ours, half = sequences["ours"], sequences["half"]
    same = [np.array_equal(one, other) for one, other in zip(ours.crops, half.crops, strict=True)]
    assert same == [True, False, True, False]
    assert not np.array_equal(half.crops[0], half.crops[1]), "each picture has its own lips"
    figures = LaidPictures(model)(ours, half)
    assert figures["laid_lips_psnr"] > 18 and figures["laid_lpips"] < 0.2 and 0.2 < figures["laid_sharpness"] < 2
    alike = LaidPictures(model)(ours, ours)
    assert alike["laid_lips_psnr"] > 70 and alike["laid_sharpness"] == 1


def test_rows_of_the_contact_sheet_are_of_one_width(model):
    faces = Talking(model)
    sample = SampleMaker(model).make(faces, [3], [2, 4], [8, 12], None, 2)[0]
    truth = faces.crop(0)[:96, :120]
    strip = attention_strip(DualAttentionRenderer(RendererConfig()), sample)
    row = sheet_row([truth, truth, truth], sample.pncc)
    assert strip.shape[1:] == row.shape[1:] and strip.dtype == row.dtype == np.uint8

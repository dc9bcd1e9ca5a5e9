"""References on a device look as the aligner lays them, whichever of them and however many."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from cpu_rasteriser import CpuRasteriser

from engine.models.renderer import RendererConfig
from engine.models.weights import load_face_model
from engine.paint.align import Aligner, Reference
from engine.paint.gpu.atlas import COLUMNS, ReferenceAtlas
from engine.paint.shape import SHAPE_VERTICES, Shape, triangles

POSE = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def aligner(model):
    return Aligner(model, RendererConfig())


def photo(seed):
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), (0, 0), 2)


def shaped(model, opening, turn=0.0, x=0.5):
    vertices = model.mean.clone()
    vertices[[14, 87, 317, 17, 84, 314, 199, 152], 1] += opening
    pose = POSE.clone()
    pose[1], pose[4] = turn, x
    return Shape.posed(vertices, model.mean, pose)


@pytest.fixture(scope="module")
def references(model):
    """More than fit into one row of tiles; one of them hangs out of its crop."""
    poses = [(0.01 * i, 0.02 * i, 0.9 if i == 3 else 0.5) for i in range(COLUMNS + 3)]
    return [Reference(photo(i), shaped(model, *pose)) for i, pose in enumerate(poses)]


@pytest.fixture
def atlas(model, references):
    atlas = ReferenceAtlas(CPU, CpuRasteriser(triangles(model)), SHAPE_VERTICES)
    half = len(references) // 2
    assert atlas.reserve(half) == 0
    for slot, reference in enumerate(references[:half]):
        put(atlas, slot, reference)
    assert atlas.reserve(len(references) - half) == half, "what is there stays there"
    for slot, reference in enumerate(references[half:], half):
        put(atlas, slot, reference)
    return atlas


def put(atlas, slot, reference):
    shape = reference.shape
    atlas.put(slot, *map(torch.from_numpy, (reference.crop, shape.mesh, shape.canonical, shape.rotation)))


def lay(atlas, target, slots):
    """Over the face window of one target."""
    window = target.window
    y, x = np.mgrid[window.top : window.top + window.height, window.left : window.left + window.width]
    return atlas.lay(
        torch.tensor([slots]),
        torch.from_numpy(target.shape.canonical)[None],
        torch.from_numpy(target.shape.rotation)[None],
        tuple(torch.from_numpy(part)[None] for part in (target.coverage.triangle, target.coverage.weights)),
        tuple(
            torch.from_numpy(part[2::4, 2::4].copy())[None]
            for part in (target.coverage.triangle, target.coverage.weights)
        ),
        torch.from_numpy(np.stack([x, y])).float()[None],
    )


@pytest.mark.parametrize("slots", [[0, 1, 2], [COLUMNS + 2, 3, 0, COLUMNS - 1, COLUMNS], [3]])
def test_they_are_laid_as_the_aligner_does(model, aligner, references, atlas, slots):
    base = shaped(model, 0.0)
    target = aligner.target(shaped(model, 0.08, 0.1), base)
    laid, expected = lay(atlas, target, slots), aligner.faces(target, [references[i] for i in slots])
    assert laid.pixels.shape == expected.pixels.shape and laid.difference.shape == expected.difference.shape
    error = 127.5 * (laid.pixels - expected.pixels)
    assert error.abs().max() <= 2 and error.square().mean() < 0.1
    assert torch.allclose(laid.difference, expected.difference, atol=1e-6)


def test_a_reference_that_is_none_differs_so_much_that_it_counts_for_nothing(model, aligner, atlas):
    base = shaped(model, 0.0)
    laid = lay(atlas, aligner.target(base, base), [1, -1])
    assert (laid.difference[0, 1] == 1).all() and laid.difference[0, 0].abs().max() < 0.5
    assert laid.pixels.isfinite().all()

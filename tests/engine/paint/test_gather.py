"""The texture in one pass, against OpenCV's remap of each reference and the plain mixture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from painted import photo, psnr

from engine.models.morphable import CROP_PX
from engine.models.renderer import CELL_PX, FINE, mixed
from engine.models.weights import load_face_model
from engine.paint.align import Aligner, Reference
from engine.paint.shape import Shape

POSE = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25])


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def aligner(model):
    return Aligner(model)


def shaped(model, opening, pose=POSE):
    vertices = model.mean.clone()
    for v in (14, 87, 317, 17, 84, 314, 199, 152):
        vertices[v, 1] += opening
    return Shape.posed(vertices, model.mean, pose)


def references(model, zoom, openings, pose=POSE):
    side = zoom * CROP_PX
    return [Reference(np.roll(photo(side, side), 9 * i, 1), shaped(model, o, pose)) for i, o in enumerate(openings)]


def some_shares(target, lips, faces):
    """Shares [lips + faces, rows, columns] as attention gives them: smooth, partly zero, with the sum 1."""
    rng = np.random.default_rng(0)
    size = target.window.rows, target.window.columns
    raw = np.maximum(rng.normal(0, 1, (lips + faces, *size)), 0).astype(np.float32) + 1e-6
    raw = np.stack([cv2.GaussianBlur(share, (0, 0), 1.5) for share in raw])
    raw[raw < np.quantile(raw, 0.4)] = 0
    raw[[0, lips]] += 0.05
    raw[:lips] *= target.lip_mask / np.maximum(raw[:lips].sum(0), 1e-6)
    raw[lips:] *= (1 - target.lip_mask) / np.maximum(raw[lips:].sum(0), 1e-6)
    return raw


@pytest.mark.parametrize("zoom", [1, FINE])
@pytest.mark.parametrize("moved", [0.0, 0.3])  # turned and moved to the crop's edge
def test_it_is_the_mixture_of_all_references_laid_onto_the_target(model, aligner, zoom, moved):
    pose = POSE + moved * torch.tensor([0.3, 0.6, 0.2, 0.3, 0.5, 0.6])
    target = aligner.target(shaped(model, 0.2, pose), shaped(model, 0.0, pose))
    lips, faces = references(model, zoom, (0.2, 0.1, 0.3)), references(model, zoom, (0.0, 0.05), pose)
    shares = some_shares(target, len(lips), len(faces))
    fast = aligner.texture(target, lips, faces, shares)
    of_lips, of_faces = (torch.from_numpy(part)[None] for part in (shares[:3], shares[3:]))
    cell = torch.tensor([(target.lips.row, target.lips.column)])
    plain = mixed(
        of_lips, of_faces, cell, aligner.lips(target, lips).pixels, aligner.faces(target, faces).pixels, zoom * CELL_PX
    )
    plain = (plain[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert fast.shape == plain.shape == (zoom * target.window.height, zoom * target.window.width, 3)
    assert np.abs(fast - plain).mean() < 0.5 and psnr(fast, plain) > 46


def test_references_without_a_share_are_not_seen(model, aligner):
    target = aligner.target(shaped(model, 0.2), shaped(model, 0.0))
    lips, faces = references(model, 1, (0.2,)), references(model, 1, (0.0, 0.1))
    shares = np.zeros((3, target.window.rows, target.window.columns), np.float32)
    shares[1] = 1
    alone = aligner.texture(target, lips, faces, shares)
    black = [Reference(np.zeros_like(reference.crop), reference.shape) for reference in (lips[0], faces[1])]
    np.testing.assert_array_equal(alone, aligner.texture(target, black[:1], [faces[0], black[1]], shares))


@pytest.mark.parametrize("zoom", [1, FINE])
def test_where_nothing_has_moved_pixels_are_copied(model, aligner, zoom):
    shape = shaped(model, 0.1)
    target = aligner.target(shape, shape)
    (face,) = references(model, zoom, (0.1,))
    shares = np.ones((1, target.window.rows, target.window.columns), np.float32)
    rows, columns = (slice(zoom * s.start, zoom * s.stop) for s in target.window.pixels)
    np.testing.assert_allclose(aligner.texture(target, [], [face], shares), face.crop[rows, columns], atol=0.02)


@pytest.mark.parametrize("zoom", [1, FINE])
def test_a_painted_window_is_laid_onto_the_next_mesh(model, aligner, zoom):
    """A texture fixed to the face follows mouth and head."""
    moved = POSE + torch.tensor([0.0, 0.03, 0.01, 0.0, 0.012, 0.008])
    before, after = shaped(model, 0.05), shaped(model, 0.12, moved)
    crop = photo(zoom * CROP_PX, zoom * CROP_PX)

    def window_of(shape):
        target = aligner.target(shape, shape)
        shares = np.ones((1, target.window.rows, target.window.columns), np.float32)
        texture = aligner.texture(target, [], [Reference(crop, shaped(model, 0.0))], shares)
        return target, np.rint(texture).astype(np.uint8)

    (origin, pixels), (_, truth) = window_of(before), window_of(after)
    target = aligner.paste_target(after, after)
    laid = aligner.laid(target, pixels, origin)
    inside = cv2.resize(target.paste_mask, laid.shape[1::-1]) > 0.5
    assert psnr(laid[inside], truth[inside]) > 32
    still = pixels[: laid.shape[0], : laid.shape[1]]
    assert still.shape != laid.shape or psnr(still[inside], truth[inside]) < 25

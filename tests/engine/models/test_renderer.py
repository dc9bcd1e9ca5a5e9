"""The renderer before training is a copy, and its attention trusts references by their geometry alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from painted import psnr

from engine.backends.cpu import CpuBackend
from engine.models.renderer import (
    CELL_PX,
    DIFFERENCE,
    DualAttentionRenderer,
    ReferenceAttention,
    References,
    RendererConfig,
    mixed,
)
from engine.models.weights import default_path, load, load_face_model
from engine.paint.align import Aligner, Reference
from engine.paint.raster import locate, spread_codes
from engine.paint.shape import Shape

CONFIG = RendererConfig()
POSE = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25])


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def aligner(model):
    return Aligner(model)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return DualAttentionRenderer(CONFIG).eval().requires_grad_(False)


def photo(seed=0):
    """A crop with structure down to a few pixels."""
    y, x = np.mgrid[0:256, 0:256]
    waves = [np.sin(x / 9 + y / 31 + seed), np.cos(y / 7 - x / 50), np.sin((x + y) / 13 + seed)]
    return np.stack([127 + 80 * w for w in waves], -1).astype(np.uint8)


def shaped(model, opening=0.0, pose=POSE):
    vertices = model.mean.clone()
    for v in (14, 87, 317, 17, 84, 314, 199, 152):
        vertices[v, 1] += opening
    return Shape.posed(vertices, model.mean, pose)


def inputs(aligner, target, references, lips=None):
    return (
        torch.from_numpy(target.pncc)[None],
        torch.from_numpy(target.lip_mask)[None, None],
        torch.tensor([(target.lips.row, target.lips.column)]),
        aligner.lips(target, lips or references),
        aligner.faces(target, references),
    )


def render(network, aligner, target, references, lips=None):
    pixels = network(*inputs(aligner, target, references, lips))
    return ((pixels[0].permute(1, 2, 0) + 1) * 127.5).numpy()


def window(crop, target):
    return crop[target.window.pixels]


def test_an_untrained_network_copies_the_frame_it_is_shown(untrained, model, aligner):
    shape = shaped(model)
    target = aligner.target(shape, shape)
    reference = Reference(photo(), shape)
    out = render(untrained, aligner, target, [reference])
    assert psnr(out, window(photo(), target)) > 45


def test_of_several_references_the_one_with_the_targets_geometry_is_copied(untrained, model, aligner):
    closed, opened = shaped(model), shaped(model, 0.3)
    target = aligner.target(opened, opened)
    references = [Reference(photo(1), closed), Reference(photo(2), opened)]
    out = render(untrained, aligner, target, references)
    mouth = np.zeros(target.paste_mask.shape, bool)  # where the two differ
    x, y = (opened.mesh[14, :2] - np.array([target.window.left, target.window.top])).astype(int)
    mouth[y - 3 : y + 4, x - 8 : x + 9] = True
    right, wrong = (window(photo(seed), target)[mouth] for seed in (2, 1))
    assert psnr(out[mouth], right) > psnr(out[mouth], wrong) + 5


@pytest.mark.parametrize("trained", [False, True])
def test_a_reference_of_quite_another_geometry_changes_nothing(untrained, model, aligner, trained):
    network = load(DualAttentionRenderer, RendererConfig, default_path("renderer")) if trained else untrained
    shapes = [shaped(model, opening) for opening in (0.0, 0.1)]
    target = aligner.target(shapes[1], shapes[0])
    references = [Reference(photo(i), shape) for i, shape in enumerate(shapes)]
    turned = Reference(photo(7), shaped(model, 0.5, POSE + torch.tensor([0.4, 0.4, 0.2, 0, 0, 0])))
    without, beside = (render(network, aligner, target, shown) for shown in (references, [*references, turned]))
    assert np.abs(without - beside).max() < 0.02


def test_the_order_of_the_references_behind_the_first_does_not_matter(untrained, model, aligner):
    shapes = [shaped(model, opening) for opening in (0.0, 0.1, 0.12, 0.25)]
    target = aligner.target(shapes[1], shapes[0])
    first, *others = [Reference(photo(i), shape) for i, shape in enumerate(shapes)]
    there, back = (render(untrained, aligner, target, [first, *order]) for order in (others, others[::-1]))
    assert np.abs(there - back).max() < 0.02


def test_of_equal_references_the_first_is_copied(untrained, model, aligner):
    shape = shaped(model)
    target = aligner.target(shape, shape)
    out = render(untrained, aligner, target, [Reference(photo(i), shape) for i in range(5)])
    assert psnr(out, window(photo(0), target)) > 45


def test_attention_shares_sum_to_one_and_fall_with_the_distance():
    torch.manual_seed(0)
    attention = ReferenceAttention(CONFIG)
    difference = torch.zeros(2, 3, DIFFERENCE, 4, 5)
    difference[:, 1] = 0.02
    difference[:, 2] = 0.2
    weights = attention(torch.randn(2, CONFIG.channels, 4, 5), difference)
    assert weights.shape == (2, 3, 4, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 5))
    assert (weights[:, 0] > weights[:, 1]).all() and (weights[:, 1] >= weights[:, 2]).all()
    assert (weights[:, 2] == 0).all(), "a faint share is left out"


def test_lip_texture_is_used_only_inside_the_lip_mask(untrained, model, aligner):
    shape = shaped(model)
    target = aligner.target(shape, shape)
    out = render(untrained, aligner, target, [Reference(photo(1), shape)], lips=[Reference(photo(5), shape)])
    mask = target.lip_mask.repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    face = cv2.dilate(mask, np.ones((2 * CELL_PX, 2 * CELL_PX))) == 0  # shares are interpolated between cells
    assert psnr(out[face], window(photo(1), target)[face]) > 45
    lips = cv2.erode(mask, np.ones((2 * CELL_PX, 2 * CELL_PX))) == 1
    assert lips.sum() > 100
    assert psnr(out[lips], window(photo(5), target)[lips]) > 45


def test_a_batch_is_its_members_side_by_side(model):
    network = load(DualAttentionRenderer, RendererConfig, default_path("renderer"))
    aligner, made = Aligner(model, CONFIG), []
    for i, opening in enumerate((0.0, 0.2)):
        shapes = [
            shaped(model, opening, POSE + torch.tensor([0, 0, 0, 0, 0.02 * i, 0.01])),
            shaped(model),
        ]
        made.append(inputs(aligner, aligner.target(*shapes), [Reference(photo(i), s) for s in shapes]))
    joined = [torch.cat(parts) for parts in zip(*(m[:3] for m in made), strict=True)]
    joined += [
        References(torch.cat([m[i].pixels for m in made]), torch.cat([m[i].difference for m in made])) for i in (3, 4)
    ]
    together = network(*joined)
    for row, single in zip(together, made, strict=True):
        torch.testing.assert_close(row[None], network(*single), atol=1e-4, rtol=1e-4)


# ---- what is left out, and bfloat16


@pytest.mark.parametrize("opening", [0.0, 0.3])
def test_what_is_pasted_is_the_same_from_the_small_window_as_from_a_large_one(model, opening):
    network = load(DualAttentionRenderer, RendererConfig, default_path("renderer"))
    large = RendererConfig(face_rows=48, face_columns=56, lip_rows=20, lip_columns=32)
    crops = []
    for aligner in (Aligner(model), Aligner(model, large)):
        closed, opened = shaped(model), shaped(model, opening)
        target = aligner.target(opened, closed)
        out = render(network, aligner, target, [Reference(photo(1), closed), Reference(photo(2), opened)])
        whole, mask = np.zeros((256, 256, 3)), np.zeros((256, 256))
        whole[target.window.pixels], mask[target.window.pixels] = out, target.paste_mask
        crops.append((whole, mask))
    (small, mask), (whole, _) = crops
    assert target.window.rows == 48 and (mask > 0.01).sum() > 4000
    assert psnr(small[mask > 0.01], whole[mask > 0.01]) > 45
    patches = cv2.blur(np.abs(small - whole).mean(2), (8, 2))  # a line at a window's border is seen, whatever the mean
    assert patches[mask > 0.5].max() < 4


def test_bfloat16_gives_the_same_pictures(model, aligner):
    backends = [CpuBackend.embedded(bfloat16=reduced) for reduced in (False, True)]
    closed, opened = shaped(model), shaped(model, 0.3)
    target = aligner.target(opened, closed)
    pncc, mask, cell, lips, faces = inputs(aligner, target, [Reference(photo(1), closed), Reference(photo(2), opened)])
    pictures = []
    for backend in backends:
        geometry, *shares = backend.attention(pncc, mask, cell, lips.difference, faces.difference)
        texture = mixed(*shares, cell, lips.pixels, faces.pixels)
        residual = backend.residual(texture, geometry, pncc)
        assert shares[0].dtype == residual.dtype == torch.float32
        pictures.append((texture + residual).numpy() * 127.5)
    assert not np.array_equal(*pictures)
    assert psnr(*pictures) > 45


# ---- laying references onto the target


def test_a_reference_is_laid_onto_the_targets_place_and_turn(model, aligner):
    """A texture painted onto one posed face is found again on the other."""
    here = shaped(model)
    there = shaped(model, pose=torch.tensor([0.0, 0.25, 0.1, 0.42, 0.47, 0.22]))

    def painted(shape):
        drawn = spread_codes(locate(shape.mesh[:468], model.triangles.numpy(), 256, 256), model.codes.numpy())
        return (np.moveaxis(drawn, 0, -1) * 255).astype(np.uint8)

    target = aligner.target(here, here)
    laid = aligner.faces(target, [Reference(painted(there), there)]).pixels[0, 0]
    laid, expected = (laid.permute(1, 2, 0).numpy() + 1) * 127.5, window(painted(here), target)
    inside = target.paste_mask > 0.99
    assert np.median(np.abs(laid - expected)[inside]) < 4


def test_the_difference_is_zero_for_the_target_itself_and_tells_lips_and_turn(model, aligner):
    closed, opened = shaped(model), shaped(model, 0.3)
    turned = shaped(model, pose=POSE + torch.tensor([0.0, 0.2, 0, 0, 0, 0]))
    target = aligner.target(closed, closed)
    difference = aligner.lips(target, [Reference(photo(), s) for s in (closed, opened, turned)]).difference[0]
    by_kind = {"same": difference[0], "opened": difference[1], "turned": difference[2]}
    assert not by_kind["same"].any()
    assert by_kind["turned"][4].min() == pytest.approx(0.2) and not by_kind["turned"][:3].any()
    assert by_kind["opened"][1].max() > 0.2 and not by_kind["opened"][3:].any()

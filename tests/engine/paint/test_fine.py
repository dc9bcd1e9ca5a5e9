"""Pictures at 512 px: those at 256 px with the detail that the textures have beyond it, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.models.morphable import CROP_PX
from engine.models.renderer import FINE, DualAttentionRenderer, RendererConfig
from engine.models.weights import default_path, load, load_face_model
from engine.paint.align import Aligner, Reference
from engine.paint.composite import cut, paste
from engine.paint.painter import FittedVideo
from engine.paint.shape import Shape

POSE = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25])
SIDE = FINE * CROP_PX


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def network():
    return load(DualAttentionRenderer, RendererConfig, default_path("renderer"))


@pytest.fixture(scope="module")
def avatar(avatar_path):
    return Avatar.open(avatar_path)


def smooth(seed):
    """A crop of 512 px without anything that 256 px could not show."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    waves = [np.sin(x / 40 + y / 90 + seed), np.cos(y / 31 - x / 99), np.sin((x + y) / 52 + seed)]
    return np.stack([127 + 60 * w for w in waves], -1).astype(np.uint8)


def textured(seed):
    """The same with grain of about 3 px in it."""
    grain = np.random.default_rng(seed).normal(0, 60, (SIDE, SIDE)).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), 0.8)[..., None]
    return (smooth(seed) + grain).clip(0, 255).astype(np.uint8)


def coarse(crop):
    return cv2.resize(crop, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)


def shapes_of(model):
    """Mouths closed, open, and between."""
    made = []
    for opening in (0.0, 0.25, 0.1):
        vertices = model.mean.clone()
        for v in (14, 87, 317, 17, 84, 314, 199, 152):
            vertices[v, 1] += opening
        made.append(Shape.posed(vertices, model.mean, POSE))
    return made


@torch.inference_mode()
def rendered(network, model, crops, which=0):
    """The target and its picture [h, w, 3] in [0, 255]; crops of either size, one for each of the shapes."""
    aligner = Aligner(model)
    shapes = shapes_of(model)
    target = aligner.target(shapes[which], shapes[0])
    references = [Reference(crop, shape) for crop, shape in zip(crops, shapes, strict=True)]
    pixels = network(
        torch.from_numpy(target.pncc)[None],
        torch.from_numpy(target.lip_mask)[None, None],
        torch.tensor([(target.lips.row, target.lips.column)]),
        aligner.lips(target, references),
        aligner.faces(target, references),
    )
    return target, ((pixels[0].permute(1, 2, 0) + 1) * 127.5).numpy()


def enlarged(image):
    return cv2.resize(image, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_LINEAR)


def psnr(a, b, inside=None):
    error = (a.astype(float) - b) ** 2
    return 10 * np.log10(255**2 / max(1e-9, error.mean() if inside is None else error[inside].mean()))


def sharpness(image, inside):
    grey = cv2.cvtColor(image.clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return np.sqrt((cv2.Laplacian(grey, cv2.CV_32F) ** 2)[inside].mean())


@pytest.mark.parametrize("which", [0, 1])
def test_without_detail_beyond_256_px_it_is_the_picture_of_256_px(network, model, which):
    crops = [smooth(seed) for seed in (0.0, 0.1, 0.2)]
    target, fine = rendered(network, model, crops, which)
    _, plain = rendered(network, model, [coarse(crop) for crop in crops], which)
    assert fine.shape == (FINE * plain.shape[0], FINE * plain.shape[1], 3)
    inside = enlarged(target.paste_mask) > 0.5
    assert psnr(fine, enlarged(plain), inside) > 48


@pytest.mark.parametrize("which", [0, 1])
def test_made_smaller_it_is_the_picture_of_256_px_whatever_the_texture(network, model, which):
    crops = [textured(seed) for seed in (0, 1, 2)]
    target, fine = rendered(network, model, crops, which)
    _, plain = rendered(network, model, [coarse(crop) for crop in crops], which)
    # Up and down again by linear interpolation is a little smoother than what went in.
    there_and_back = cv2.resize(enlarged(plain), plain.shape[1::-1], interpolation=cv2.INTER_AREA)
    smaller = cv2.resize(fine, plain.shape[1::-1], interpolation=cv2.INTER_AREA)
    inside = target.paste_mask > 0.5
    assert psnr(smaller, plain, inside) > 33
    assert psnr(smaller, there_and_back, inside) < 60  # it is not just that


def test_detail_that_256_px_cannot_show_comes_back(network, model):
    crops = [textured(0)] * 3
    target, fine = rendered(network, model, crops)
    _, plain = rendered(network, model, [coarse(crop) for crop in crops])
    y, x = target.window.pixels
    truth = crops[0][FINE * y.start : FINE * y.stop, FINE * x.start : FINE * x.stop]
    lips = enlarged(np.kron(target.lip_mask, np.ones((4, 4), np.float32))) > 0
    skin = (enlarged(target.paste_mask) > 0.5) & ~lips
    assert psnr(fine, truth, skin) > psnr(enlarged(plain), truth, skin) + 5
    assert sharpness(enlarged(plain), skin) < 0.6 * sharpness(truth, skin)
    assert 0.8 * sharpness(truth, skin) < sharpness(fine, skin) < 1.1 * sharpness(truth, skin)


# ---- pictures of an avatar


def mouths(avatar, model, count=3):
    """Base frames and, of others of the video, lower faces."""
    lower = model.vertices(avatar.alpha, avatar.beta)[:, model.lower]
    return [(20 + 30 * i, lower[60 + 17 * i]) for i in range(count)]


def painter_of(backend, avatar, model):
    return backend.painter(FittedVideo.of(avatar), avatar.bank, model)


def test_a_large_face_is_enrolled_at_512_px_and_opened_as_is_asked(avatar, avatar_path):
    assert avatar.bank.crops.shape[1:] == (SIDE, SIDE, 3)
    fast = Avatar.open(avatar_path, quality="fast")
    assert fast.bank.crops.shape[1:] == (CROP_PX, CROP_PX, 3)
    assert np.array_equal(fast.bank.crops[7].numpy(), coarse(avatar.bank.crops[7].numpy()))
    assert torch.equal(fast.bank.beta, avatar.bank.beta)


def test_best_is_sharper_than_fast_and_changes_no_pixel_more(avatar, avatar_path, model):
    backend = CpuBackend.embedded()
    best, fast = (painter_of(backend, a, model) for a in (avatar, Avatar.open(avatar_path, quality="fast")))
    ratios, truths = [], []
    with avatar.open_base() as video:
        for index, lower in mouths(avatar, model):
            base, fine, plain = video.read(index), best.paint(index, lower), fast.paint(index, lower)
            pasted = (fine != base).any(-1)
            inner = cv2.erode(pasted.astype(np.uint8), np.ones((25, 25))) > 0
            assert 0.02 < pasted.mean() < 0.3
            assert psnr(fine, plain, pasted) > 30
            ratios.append(sharpness(fine, inner) / sharpness(plain, inner))
            truths.append(sharpness(fine, inner) / sharpness(base, inner))
    assert min(ratios) > 1.1 and max(truths) < 1.2


def test_a_run_at_256_px_of_a_large_face_is_that_of_the_avatar_opened_fast(avatar, avatar_path, model):
    backend = CpuBackend.embedded()
    best, fast = (painter_of(backend, a, model) for a in (avatar, Avatar.open(avatar_path, quality="fast")))
    run = mouths(avatar, model)
    (coarsely,), (opened,) = best.paint_together([(best, run, False)]), fast.paint_together([(fast, run, True)])
    for picture, expected in zip(coarsely, opened, strict=True):
        assert psnr(picture, expected) > 45


def test_a_picture_in_bfloat16_is_that_in_float32(avatar, model):
    backends = [CpuBackend.embedded(bfloat16=reduced) for reduced in (False, True)]
    (mouth,) = mouths(avatar, model, 1)
    pictures = [painter_of(backend, avatar, model).paint(*mouth) for backend in backends]
    assert psnr(*pictures) > 50


# ---- pasting


@pytest.mark.parametrize("box", [(40, 30, 300), (10, 5, 420), (-30, 60, 512), (20, 0, 700), (70, 60, 200)])
def test_fine_pixels_are_pasted_where_the_plain_ones_are_and_nowhere_else(model, box):
    aligner = Aligner(model)
    shape = shapes_of(model)[1]
    target = aligner.target(shape, shape)
    y, x = np.mgrid[0:480, 0:640]
    frame = np.stack([127 + 80 * np.sin(x / 17 + y / 31), 127 + 80 * np.cos(y / 15), 0 * x + 90], -1).astype(np.uint8)
    box = np.array(box)
    outs = []
    for side in (CROP_PX, SIDE):
        fine = side // CROP_PX
        rows, columns = (slice(fine * s.start, fine * s.stop) for s in target.window.pixels)
        crop = cut(frame, box, side)[rows, columns]
        inverted = paste(frame, box, target.window, 255 - crop, target.paste_mask)
        outs.append((paste(frame, box, target.window, crop, target.paste_mask), (inverted != frame).any(-1)))
    (plain, plain_changed), (fine_out, fine_changed) = outs
    assert psnr(fine_out, frame) > 45 and psnr(fine_out, frame) >= psnr(plain, frame) - 0.5
    grown = cv2.dilate(plain_changed.astype(np.uint8), np.ones((3, 3))) > 0
    assert plain_changed.sum() > 1000 and not (fine_changed & ~grown).any()

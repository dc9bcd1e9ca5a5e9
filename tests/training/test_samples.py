"""Samples for the renderer: the target is never among its references, and a mirrored sample is a sample."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.models.renderer import CELL_PX, RendererConfig
from engine.models.weights import load_face_model
from engine.paint.shape import Shape
from precompute.fit import FaceFit
from training.data.clips import Clip, crops_path, fit_path, save_crops, save_fit
from training.renderer.samples import (
    Augmentation,
    ClipFaces,
    Sample,
    SampleMaker,
    TrainingSampler,
    collate,
    mirrored,
    neighbours,
    sorted_bank,
)

CONFIG = RendererConfig()
FRAMES, KEPT = 40, np.arange(4, 36)


@pytest.fixture(scope="module")
def model():
    return load_face_model()


def synthetic_clip(runs, model, name="p001_001", identity="p001"):
    """A clip whose every crop has a grey level of its own and a mouth that opens and closes."""
    rng = np.random.default_rng(len(name))
    beta = np.zeros((FRAMES, len(model.expression_basis)), np.float32)
    beta[:, 0] = 2 * np.sin(np.arange(FRAMES) / 3)
    pose = np.tile(np.array([0, 0, 0, 0.38, 0.5, 0.25], np.float32), (FRAMES, 1))
    pose[:, :3] += rng.normal(0, 0.03, (FRAMES, 3)).astype(np.float32)
    fit = FaceFit(
        alpha=np.zeros((FRAMES, len(model.shape_basis)), np.float32),
        beta=beta,
        pose=pose,
        crop=np.zeros((FRAMES, 3), np.int32),
        error_px=np.zeros(FRAMES, np.float32),
        lip_error_px=np.zeros(FRAMES, np.float32),
    )
    clip = Clip(
        path=Path(f"{name}.mp4"),
        kind="real",
        identity=identity,
        split="train",
        source="",
        language="",
        duration_s=FRAMES / 25,
        face_px=200,
    )
    save_fit(fit_path(runs, clip), fit, 0)
    levels = (5 * KEPT + 20).astype(np.uint8)
    save_crops(crops_path(runs, clip), np.tile(levels[:, None, None, None], (1, 256, 256, 3)), KEPT)
    return ClipFaces(clip, runs, model)


@pytest.fixture(scope="module")
def faces(tmp_path_factory, model):
    return synthetic_clip(tmp_path_factory.mktemp("runs"), model)


def levels(pixels):
    """The frames that references come from, by their grey level."""
    return [round(float((p.mean() + 1) * 127.5 - 20) / 5) for p in pixels]


def test_rows_are_the_frames_that_have_crops(faces):
    assert len(faces) == len(KEPT) and (faces.crop(3) == 5 * KEPT[3] + 20).all()
    assert faces.canonical.shape[0] == len(KEPT) and np.ptp(faces.opening) > 0.01


def test_neighbours_begin_with_the_base_frame_and_leave_the_target_out(faces):
    assert neighbours(faces, 5, 4, excluded=[9])[0] == 5
    others = neighbours(faces, 5, 4, excluded=[5])
    assert 5 not in others and sorted(others) == [3, 4, 6, 7]


def test_the_bank_is_sorted_by_opening_and_keeps_its_distance(faces):
    bank = sorted_bank(faces, 8, target=6, gap=4)
    assert (np.diff(faces.opening[bank]) >= 0).all() and len(set(bank)) == 8
    assert all(abs(faces.index[row] - faces.index[6]) > 4 for row in bank)
    assert len(sorted_bank(faces, 100, target=6, gap=0)) == len(faces) - 1


def test_a_sample_shows_the_chosen_references(faces, model):
    sample = SampleMaker(model, CONFIG).make(faces, [6], [7, 5, 8], [1, 2, 3, 9], None, 2)[0]
    height, width = CONFIG.face_rows * CELL_PX, CONFIG.face_columns * CELL_PX
    assert sample.pncc.shape == sample.truth.shape == sample.base.shape == (3, height, width)
    assert sample.face_pixels.shape == (3, 3, height, width)
    assert sample.lip_pixels.shape == (2, 3, CONFIG.lip_rows * CELL_PX, CONFIG.lip_columns * CELL_PX)
    assert levels(sample.face_pixels) == KEPT[[7, 5, 8]].tolist()
    assert levels([sample.truth, sample.base]) == KEPT[[6, 7]].tolist()
    assert set(levels(sample.lip_pixels)) <= set(KEPT[[1, 2, 3, 9]].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_never_among_its_references(faces, model, tmp_path, seed):
    other = synthetic_clip(tmp_path, model, "p002_0001", "p002")
    sampler = TrainingSampler([faces, other], SampleMaker(model, CONFIG), np.random.default_rng(seed), near=3, lips=4)
    for _ in range(4):
        pair = sampler.draw()
        for truth in (sample.truth.mean((1, 2)) for sample in pair):
            for reference in (*pair[0].face_pixels, *pair[0].lip_pixels):
                assert (reference.mean((1, 2)) - truth).abs().max() > 0.01


def test_a_pair_is_two_frames_in_a_row_in_the_same_windows_with_the_same_references(faces, model):
    sampler = TrainingSampler([faces], SampleMaker(model, CONFIG), np.random.default_rng(0), near=3, lips=4)
    first, second = sampler.draw()
    assert torch.equal(first.cell, second.cell) and torch.equal(first.lip_cell, second.lip_cell)
    for name in ("face_pixels", "lip_pixels", "base"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), atol=0.02, rtol=0)
    assert not torch.equal(first.truth, second.truth) and not torch.equal(first.pncc, second.pncc)


def test_a_moved_image_and_its_moved_shape_still_show_the_same_place(faces, model):
    """A dot at a vertex appears where the moved shape places it."""
    shape = Shape.posed(faces.canonical[0], faces.neutral[0], faces.poses[0])
    moved = 0
    for seed in range(8):
        change = Augmentation(np.random.default_rng(seed))
        for vertex in (17, 61, 152):
            dot = np.zeros((256, 256, 3), np.uint8)
            cv2.circle(
                dot, tuple(np.rint(shape.mesh[vertex, :2] * 16 - 8).astype(int).tolist()), 48, (255,) * 3, -1, shift=4
            )
            y, x = np.nonzero(change.image(dot).max(2) > 60)
            expected = change.shape(shape).mesh[vertex, :2]
            assert np.abs(np.array([x.mean(), y.mean()]) + 0.5 - expected).max() < 0.8
            moved += np.abs(expected - shape.mesh[vertex, :2]).max() > 2
    assert moved


def test_mirroring_twice_gives_the_sample_back(faces, model):
    sample = SampleMaker(model, CONFIG).make(faces, [6], [7, 5], [1, 9], None, 2)[0]
    once, twice = mirrored(sample), mirrored(mirrored(sample))
    for name in Sample.__dataclass_fields__:
        torch.testing.assert_close(getattr(twice, name), getattr(sample, name))
    row, column = once.lip_cell.tolist()
    inside = once.lip_mask[0, row : row + CONFIG.lip_rows, column : column + CONFIG.lip_columns]
    assert inside.sum() == once.lip_mask.sum() > 0


def test_a_mirrored_face_has_the_codes_of_the_other_side(faces, model):
    """The mean face is nearly symmetric, so its mirrored picture must look like the face itself."""
    sample = SampleMaker(model, CONFIG).make(faces, [6], [7], [1], None, 1)[0]
    plain, other = sample.pncc, mirrored(sample).pncc
    both = (plain.sum(0) > 0) & (other.sum(0) > 0)
    along = plain[0][both], other[0][both]
    assert np.corrcoef(along[0].numpy(), along[1].numpy())[0, 1] > 0.9


def test_all_images_of_a_sample_change_colour_alike():
    change, crop = Augmentation(np.random.default_rng(0)), np.full((4, 4, 3), 100, np.uint8)
    assert np.array_equal(change.image(crop), change.image(crop.copy())) and not np.array_equal(
        change.image(crop), crop
    )


def test_samples_are_stacked_along_a_new_axis(faces, model):
    maker = SampleMaker(model, CONFIG)
    batch = collate([sample for target in (6, 8) for sample in maker.make(faces, [target], [7, 5], [1, 9], None, 2)])
    assert batch.truth.shape[0] == batch.lip_cell.shape[0] == 2 and batch.face_pixels.shape[:2] == (2, 2)

"""Cutting a crop out of a frame and pasting the lower face back: in its place, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.compose import cut, face_window, lip_mask, lip_window, lip_window_in, paste, paste_mask
from engine.models.morphable import CROP_PX, LIPS_OUTER, load_face_model, project
from engine.models.renderer import CELL_PX, RendererConfig

CONFIG = RendererConfig()
HEIGHT, WIDTH = CONFIG.face_rows * CELL_PX, CONFIG.face_columns * CELL_PX
CELL = (20, 12)
BOXES = [(50, 40, 256), (100, 30, 200), (20, 10, 333), (-60, 30, 300), (250, 150, 300), (-100, -120, 620)]


def photo(height=360, width=480):
    """A frame with structure down to a few pixels."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + y / 31), np.cos(y / 7 - x / 50), np.sin((x + y) / 13)]
    return np.stack([127 + 80 * w for w in waves], -1).astype(np.uint8)


def window_of(crop):
    top, left = CELL[0] * CELL_PX, CELL[1] * CELL_PX
    return crop[top : top + HEIGHT, left : left + WIDTH]


def soft_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[20:-20, 20:-20] = 1
    mask[10:20, 20:-20] = 0.5
    return mask


def region(box, mask, shape):
    """Which frame pixels lie where the mask of the window is not zero, or next to it."""
    left, top, size = box
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    row = np.floor((y + 0.5 - top) * CROP_PX / size - CELL[0] * CELL_PX).astype(int)
    column = np.floor((x + 0.5 - left) * CROP_PX / size - CELL[1] * CELL_PX).astype(int)
    grown = np.pad(mask > 0, 2)
    grown = np.max([np.roll(grown, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], 0)[2:-2, 2:-2]
    inside = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    return inside & grown[row.clip(0, HEIGHT - 1), column.clip(0, WIDTH - 1)]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("box", BOXES)
def test_what_was_cut_is_pasted_back_into_its_place(box):
    frame, mask = photo(), soft_mask()
    out = paste(frame, np.array(box), CELL, window_of(cut(frame, np.array(box))), mask)
    changed = region(box, mask, frame.shape)
    assert changed.sum() > 1000
    assert psnr(out[changed], frame[changed]) > 40


@pytest.mark.parametrize("box", BOXES)
def test_nothing_changes_outside_the_mask(box):
    frame, mask = photo(), soft_mask()
    before = frame.copy()
    out = paste(frame, np.array(box), CELL, np.full((HEIGHT, WIDTH, 3), 255, np.uint8), mask)
    inside = region(box, mask, frame.shape)
    assert np.array_equal(out[~inside], frame[~inside]) and np.array_equal(frame, before)
    assert (out[inside] != frame[inside]).any(-1).mean() > 0.8


@pytest.mark.parametrize("box", [(-900, 50, 256), (50, -900, 256), (2000, 50, 256), (50, 2000, 256)])
def test_a_box_beside_the_frame_changes_nothing(box):
    frame = photo()
    out = paste(frame, np.array(box), CELL, np.full((HEIGHT, WIDTH, 3), 255, np.uint8), soft_mask())
    assert np.array_equal(out, frame)


def test_an_empty_mask_changes_nothing_and_a_full_one_everything():
    frame, box = photo(), np.array((50, 40, 256))
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    assert np.array_equal(paste(frame, box, CELL, white, np.zeros((HEIGHT, WIDTH), np.float32)), frame)
    top, left = 40 + CELL[0] * CELL_PX, 50 + CELL[1] * CELL_PX
    full = paste(frame, box, CELL, white, np.ones((HEIGHT, WIDTH), np.float32))
    assert (full[top : top + HEIGHT, left : left + WIDTH] == 255).all()


@pytest.mark.parametrize("box", BOXES)
def test_a_crop_is_256_px_and_repeats_the_edges_outside_the_frame(box):
    frame = photo()
    crop = cut(frame, np.array(box))
    assert crop.shape == (CROP_PX, CROP_PX, 3) and crop.dtype == np.uint8
    if box[0] < -20:
        assert np.abs(crop[:, 2].astype(int) - crop[:, 3]).max() <= 1


def test_a_crop_of_256_px_is_the_frame_itself():
    frame = photo()
    assert np.array_equal(cut(frame, np.array((50, 40, 256))), frame[40:296, 50:306])


# ---- windows and masks of a mesh


@pytest.fixture(scope="module")
def model():
    return load_face_model()


POSES = [
    (0.0, 0.0, 0.0, 0.38, 0.5, 0.25),  # as enrolment cuts a face
    (0.3, 0.5, 0.2, 0.38, 0.45, 0.27),
    (0.0, 0.0, 0.0, 0.5, 0.95, 0.95),  # hanging out of the crop
    (0.0, 0.0, 0.0, 0.5, 0.02, 0.02),
    (0.0, -0.6, 0.0, 0.9, 0.5, 0.0),  # larger than the window
]


def mesh_of(model, pose, jaw=0.0):
    vertices = model.mean.clone()
    vertices[17, 1] += jaw
    return project(vertices, torch.tensor(pose)).numpy()


@pytest.mark.parametrize("pose", POSES)
def test_windows_stay_inside_the_crop_and_the_lips_inside_the_face(model, pose):
    mesh, grid = mesh_of(model, pose), CROP_PX // CELL_PX
    for (row, column), rows, columns in (
        (face_window(mesh, CONFIG), CONFIG.face_rows, CONFIG.face_columns),
        (lip_window(mesh, CONFIG), CONFIG.lip_rows, CONFIG.lip_columns),
        (lip_window_in(mesh, face_window(mesh, CONFIG), CONFIG), CONFIG.lip_rows, CONFIG.lip_columns),
    ):
        assert row >= 0 and row + rows <= grid and column >= 0 and column + columns <= grid
    row, column = lip_window_in(mesh, face_window(mesh, CONFIG), CONFIG)
    assert row + CONFIG.lip_rows <= CONFIG.face_rows and column + CONFIG.lip_columns <= CONFIG.face_columns


@pytest.mark.parametrize("pose", POSES)
def test_the_lip_mask_covers_the_lips_within_the_lip_window_only(model, pose):
    mesh = mesh_of(model, pose)
    cell = face_window(mesh, CONFIG)
    mask = lip_mask(mesh, cell, CONFIG)
    assert mask.shape == (CONFIG.face_rows, CONFIG.face_columns) and mask.min() >= 0 and mask.max() <= 1
    row, column = lip_window_in(mesh, cell, CONFIG)
    outside = mask.copy()
    outside[row : row + CONFIG.lip_rows, column : column + CONFIG.lip_columns] = 0
    assert not outside.any()
    if pose == POSES[0]:
        assert 0.02 < mask.mean() < 0.25
        corners = (mesh[list(LIPS_OUTER), :2] / CELL_PX - np.array([cell[1], cell[0]])).astype(int)
        assert all(mask[y, x] > 0 for x, y in corners)


def test_the_paste_mask_is_below_the_nose_soft_and_fades_before_the_windows_border(model):
    mesh = mesh_of(model, POSES[0])
    cell = face_window(mesh, CONFIG)
    mask = paste_mask(mesh, mesh, cell, CONFIG)
    assert mask.shape == (HEIGHT, WIDTH) and mask.min() >= 0 and mask.max() <= 1.0001
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.max() < 0.01
    place = lambda v: tuple((mesh[v, 1::-1] - np.array(cell) * CELL_PX).astype(int))  # noqa: E731
    for inside in (13, 14, 17, 200):  # lips and chin
        assert mask[place(inside)] > 0.95
    top = int(mesh[1, 1] - cell[0] * CELL_PX)  # the tip of the nose
    assert top < 0 or mask[: top + 1].max() < 0.01
    assert np.abs(np.diff(mask, axis=0)).max() < 0.3 and np.abs(np.diff(mask, axis=1)).max() < 0.3


def test_the_paste_mask_covers_where_the_jaw_is_and_where_it_was(model):
    still, cell = mesh_of(model, POSES[0]), face_window(mesh_of(model, POSES[0]), CONFIG)
    opened = still.copy()
    opened[150:154, 1] += 20
    opened[list(range(365, 380)), 1] += 20
    both = paste_mask(opened, still, cell, CONFIG)
    for alone in (paste_mask(still, still, cell, CONFIG), paste_mask(opened, opened, cell, CONFIG)):
        assert (both >= alone - 1e-4).all()

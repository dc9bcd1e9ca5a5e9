"""Cutting a crop out of a frame and pasting the lower face back: in its place, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from painted import photo, psnr

from engine.models.morphable import CROP_PX, LIPS_OUTER, project
from engine.models.renderer import CELL_PX, RendererConfig
from engine.models.weights import load_face_model
from engine.paint.composite import DETAIL_PX, SHARPENING, cut, paste, sharpened
from engine.paint.window import (
    GRID,
    MARGIN_PX,
    Window,
    lip_mask,
    lip_outline,
    paste_mask,
    paste_outlines,
    window_around,
    window_over,
)

CONFIG = RendererConfig()
HEIGHT, WIDTH = CONFIG.face_rows * CELL_PX, CONFIG.face_columns * CELL_PX
WINDOW = Window(20, 12, CONFIG.face_rows, CONFIG.face_columns)
BOXES = [(50, 40, 256), (100, 30, 200), (20, 10, 333), (-60, 30, 300), (250, 150, 300), (-100, -120, 620)]


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_lips_alone_get_more_detail_of_the_same_size_at_any_resolution(zoom):
    height, width = zoom * HEIGHT, zoom * WIDTH
    column = np.arange(width) / zoom
    stripes = np.broadcast_to((128 + 30 * np.sin(2 * np.pi * column / 6))[None, :, None], (height, width, 3))
    lips = np.zeros((CONFIG.face_rows, CONFIG.face_columns), np.float32)
    lips[8:20, 8:26] = 1
    out = sharpened(stripes.astype(np.float32), lips).astype(float)
    inner, outer = (slice(zoom * 48, zoom * 64), slice(zoom * 48, zoom * 84)), (slice(None), slice(0, zoom * 16))
    assert np.abs(out[outer] - stripes[outer]).max() < 0.51
    gain = out[inner].std() / stripes[inner].std()
    blurred = np.exp(-2 * (np.pi * DETAIL_PX / 6) ** 2)  # what a Gaussian leaves of a sine of 6 px
    assert gain == pytest.approx(1 + SHARPENING * (1 - blurred), abs=0.01)
    assert out[inner].mean() == pytest.approx(stripes[inner].mean(), abs=0.2), "no change of light"


def window_of(crop):
    return crop[WINDOW.pixels]


def soft_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[20:-20, 20:-20] = 1
    mask[10:20, 20:-20] = 0.5
    return mask


def region(box, mask, shape):
    """Which frame pixels lie where the mask of the window is not zero, or next to it."""
    left, top, size = box
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    row = np.floor((y + 0.5 - top) * CROP_PX / size - WINDOW.top).astype(int)
    column = np.floor((x + 0.5 - left) * CROP_PX / size - WINDOW.left).astype(int)
    grown = np.pad(mask > 0, 2)
    grown = np.max([np.roll(grown, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)], 0)[2:-2, 2:-2]
    inside = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    return inside & grown[row.clip(0, HEIGHT - 1), column.clip(0, WIDTH - 1)]


@pytest.mark.parametrize("box", BOXES)
def test_what_was_cut_is_pasted_back_into_its_place(box):
    frame, mask = photo(), soft_mask()
    out = paste(frame, np.array(box), WINDOW, window_of(cut(frame, np.array(box))), mask)
    changed = region(box, mask, frame.shape)
    assert changed.sum() > 1000
    assert psnr(out[changed], frame[changed]) > 40


@pytest.mark.parametrize("box", BOXES)
def test_nothing_changes_outside_the_mask(box):
    frame, mask = photo(), soft_mask()
    before = frame.copy()
    out = paste(frame, np.array(box), WINDOW, np.full((HEIGHT, WIDTH, 3), 255, np.uint8), mask)
    inside = region(box, mask, frame.shape)
    assert np.array_equal(out[~inside], frame[~inside]) and np.array_equal(frame, before)
    assert (out[inside] != frame[inside]).any(-1).mean() > 0.8


@pytest.mark.parametrize("box", [(-900, 50, 256), (50, -900, 256), (2000, 50, 256), (50, 2000, 256)])
def test_a_box_beside_the_frame_changes_nothing(box):
    frame = photo()
    out = paste(frame, np.array(box), WINDOW, np.full((HEIGHT, WIDTH, 3), 255, np.uint8), soft_mask())
    assert np.array_equal(out, frame)


def test_an_empty_mask_changes_nothing_and_a_full_one_everything():
    frame, box = photo(), np.array((50, 40, 256))
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    assert np.array_equal(paste(frame, box, WINDOW, white, np.zeros((HEIGHT, WIDTH), np.float32)), frame)
    top, left = 40 + WINDOW.top, 50 + WINDOW.left
    full = paste(frame, box, WINDOW, white, np.ones((HEIGHT, WIDTH), np.float32))
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


def test_a_little_more_light_is_matched_at_the_edge_and_a_moved_chin_is_not():
    frame, box = np.full((360, 480, 3), 120, np.uint8), np.array((50, 40, 256))
    mask = soft_mask()
    edge = (mask > 0.4) & (mask < 0.6)
    brighter, other = np.full((2, HEIGHT, WIDTH, 3), 126, np.uint8)
    other[:] = 200
    out = paste(frame, box, WINDOW, brighter, mask)[40:296, 50:306][WINDOW.pixels]
    assert np.abs(out[edge].astype(int) - 120).max() <= 1 and out[HEIGHT // 2, WIDTH // 2, 0] in (125, 126)
    assert (np.abs(np.diff(out.astype(int), axis=0)) <= 2).all()
    out = paste(frame, box, WINDOW, other, mask)[40:296, 50:306][WINDOW.pixels]
    assert (out[mask == 1] == 200).all() and (out[edge] == 160).all()


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


def windows(mesh):
    outlines, lips = paste_outlines(mesh), lip_outline(mesh)
    face = window_over(outlines[0], MARGIN_PX)
    fixed = window_around(outlines[0], CONFIG.face_rows, CONFIG.face_columns)
    around_lips = window_around(lips, CONFIG.lip_rows, CONFIG.lip_columns)
    return (face, window_over(lips, 0.0, face).inside(face)), (fixed, around_lips.inside(fixed))


@pytest.mark.parametrize("pose", POSES)
def test_windows_stay_inside_the_crop_and_the_lips_inside_the_face(model, pose):
    for face, lips in windows(mesh_of(model, pose)):
        for inner, rows, columns in ((face, GRID, GRID), (lips, face.rows, face.columns)):
            assert inner.row >= 0 and inner.row + inner.rows <= rows and inner.rows >= 2
            assert inner.column >= 0 and inner.column + inner.columns <= columns and inner.columns >= 2


def test_a_window_over_points_holds_them_and_little_more():
    points = np.array([[50.0, 61.0], [90.0, 100.0], [70.0, 133.0]])
    window = window_over(points, 5.0)
    local = window.local(points)
    assert (local >= 5).all() and (local <= np.array([window.width, window.height]) - 5).all()
    assert window.width <= 40 + 10 + 16 and window.height <= 72 + 10 + 16
    assert window.rows % 2 == window.columns % 2 == 0


@pytest.mark.parametrize("pose", POSES)
def test_the_lip_mask_covers_the_lips_within_the_lip_window_only(model, pose):
    mesh = mesh_of(model, pose)
    for face, lips in windows(mesh):
        mask = lip_mask(lip_outline(mesh), face, lips)
        assert mask.shape == (face.rows, face.columns) and mask.min() >= 0 and mask.max() <= 1
        outside = mask.copy()
        outside[lips.row : lips.row + lips.rows, lips.column : lips.column + lips.columns] = 0
        assert not outside.any()
        if pose == POSES[0]:
            assert 0.02 < mask.mean() < 0.35
            corners = (face.local(mesh[list(LIPS_OUTER), :2]) / CELL_PX).astype(int)
            assert all(mask[y, x] > 0 for x, y in corners)


def test_the_paste_mask_is_below_the_nose_soft_and_fades_before_the_windows_border(model):
    mesh = mesh_of(model, POSES[0])
    face, _ = windows(mesh)[0]
    mask = paste_mask(paste_outlines(mesh), face)
    assert mask.shape == (face.height, face.width) and mask.min() >= 0 and mask.max() <= 1.0001
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.max() < 0.01
    place = lambda v: tuple(face.local(mesh[v, :2])[::-1].astype(int))  # noqa: E731
    for inside in (13, 14, 17, 200):  # lips and chin
        assert mask[place(inside)] > 0.95
    top = int(face.local(mesh[1, :2])[1])  # the tip of the nose
    assert top < 0 or mask[: top + 1].max() < 0.01
    assert np.abs(np.diff(mask, axis=0)).max() < 0.3 and np.abs(np.diff(mask, axis=1)).max() < 0.3


def test_the_paste_mask_covers_where_the_jaw_is_and_where_it_was(model):
    still = mesh_of(model, POSES[0])
    opened = still.copy()
    opened[150:154, 1] += 20
    opened[list(range(365, 380)), 1] += 20
    face = window_over(np.concatenate(paste_outlines(still, opened)), MARGIN_PX)
    both = paste_mask(paste_outlines(opened, still), face)
    for alone in (still, opened):
        assert (both >= paste_mask(paste_outlines(alone), face) - 1e-4).all()

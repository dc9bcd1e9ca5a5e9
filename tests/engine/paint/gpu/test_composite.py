"""Masks and blending in torch are those of the CPU's compositor, for many pictures at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from painted import photo, psnr

from engine.models.morphable import project
from engine.models.renderer import CELL_PX, RendererConfig
from engine.models.weights import load_face_model
from engine.paint.composite import cut, paste, sharpened
from engine.paint.gpu.composite import blended, gaussian, lip_masks, paste_masks
from engine.paint.gpu.composite import sharpened as sharpened_together
from engine.paint.gpu.painter import pasted
from engine.paint.window import Window, lip_mask, lip_outline, paste_mask, paste_outlines, window_around

CONFIG = RendererConfig()
SIZE, LIPS = (CONFIG.face_rows, CONFIG.face_columns), (CONFIG.lip_rows, CONFIG.lip_columns)
HEIGHT, WIDTH = CELL_PX * CONFIG.face_rows, CELL_PX * CONFIG.face_columns
WINDOW = Window(20, 12, *SIZE)
# Smaller and larger than the crop, beyond each edge of the frame, and beside it.
BOXES = [
    (50, 40, 256),
    (100, 30, 200),
    (20, 10, 333),
    (-60, 30, 300),
    (250, 150, 300),
    (-100, -120, 620),
    (2000, 50, 256),
]
POSES = [(0.0, 0.0, 0.0, 0.38, 0.5, 0.25), (0.3, 0.5, 0.2, 0.38, 0.45, 0.27), (0.0, 0.0, 0.0, 0.5, 0.75, 0.55)]


def soft_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[24:-24, 24:-24] = 1
    return cv2.GaussianBlur(mask, (0, 0), 2.5)


@pytest.fixture(scope="module")
def meshes():
    model = load_face_model()
    opened = model.mean.clone()
    opened[[17, 84, 314, 152, 148, 377], 1] += 0.05
    return [[project(vertices, torch.tensor(pose)).numpy() for vertices in (opened, model.mean)] for pose in POSES]


def test_masks_of_a_batch_are_those_of_its_meshes(meshes):
    outlines = [paste_outlines(*pair) for pair in meshes]
    lips = [lip_outline(pair[0]) for pair in meshes]
    windows = [window_around(np.concatenate(outline), *SIZE) for outline in outlines]
    lip_windows = [window_around(lip, *LIPS).inside(window) for lip, window in zip(lips, windows, strict=True)]
    local = np.stack([[w.local(o) for o in pair] for pair, w in zip(outlines, windows, strict=True)])
    local_lips = np.stack([w.local(lip) for lip, w in zip(lips, windows, strict=True)])
    cells = torch.tensor([(w.row, w.column) for w in lip_windows])
    soft = paste_masks(torch.from_numpy(local).float(), HEIGHT, WIDTH).numpy()
    of_lips = lip_masks(torch.from_numpy(local_lips).float(), cells, SIZE, LIPS).numpy()
    for i, (window, lip_window) in enumerate(zip(windows, lip_windows, strict=True)):
        expected = paste_mask(outlines[i], window)
        assert expected.max() > 0.9 and psnr(255 * soft[i], 255 * expected) > 35
        # What is not pasted at all is the same to the pixel, but for less than a grey level's worth.
        assert soft[i][expected == 0].max() < 1 / 255
        expected = lip_mask(lips[i], window, lip_window)
        assert psnr(255 * of_lips[i, 0], 255 * expected) > 35


@pytest.mark.parametrize("fine", [1, 2])
def test_pictures_of_a_batch_are_blended_as_one_by_one(fine):
    frame, mask = photo(), soft_mask()
    part = tuple(slice(fine * side.start, fine * side.stop) for side in WINDOW.pixels)
    crops = [cv2.GaussianBlur(cut(frame, np.array(box), fine * 256)[part], (0, 0), 1.5) for box in BOXES]
    rendered = [np.clip(crop.astype(int) + 6 - 2 * i, 0, 255).astype(np.uint8) for i, crop in enumerate(crops)]
    spans = [pasted(frame.shape, np.array(box), WINDOW) for box in BOXES]
    under = np.zeros((len(BOXES), 300, 340, 3), np.uint8)
    for row, ((rows, columns), _) in zip(under, spans, strict=True):
        part = frame[rows, columns]
        row[: len(part), : part.shape[1]] = part
    batch = blended(
        torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2).float(),
        torch.from_numpy(np.stack([mask] * len(BOXES))),
        torch.from_numpy(under).permute(0, 3, 1, 2).float(),
        torch.tensor([place for _, place in spans]),
        torch.tensor([(r.stop - r.start, c.stop - c.start) for (r, c), _ in spans]),
    )
    assert np.array_equal(batch.numpy(), batch.numpy().round())
    for i, (box, ((rows, columns), _)) in enumerate(zip(BOXES, spans, strict=True)):
        expected = paste(frame, np.array(box), WINDOW, rendered[i], mask)
        out = frame.copy()
        out[rows, columns] = batch[i].permute(1, 2, 0).numpy()[: rows.stop - rows.start, : columns.stop - columns.start]
        assert psnr(out[rows, columns], expected[rows, columns]) > 60 if out[rows, columns].size else box[0] == 2000
        untouched = (expected == frame).all(-1)
        untouched[rows, columns] = False
        assert np.array_equal(out[untouched], frame[untouched])


@pytest.mark.parametrize("fine", [1, 2])
def test_a_batch_is_sharpened_as_one_by_one(fine):
    windows = np.stack([photo()[20 * i :][: fine * HEIGHT, : fine * WIDTH] for i in range(3)]).astype(np.float32)
    lips = np.random.default_rng(0).random((3, *SIZE), np.float32)
    batch = sharpened_together(torch.from_numpy(windows).permute(0, 3, 1, 2), torch.from_numpy(lips)[:, None])
    for ours, window, mask in zip(batch.permute(0, 2, 3, 1).numpy(), windows, lips, strict=True):
        assert np.abs(ours.clip(0, 255) - sharpened(window, mask)).max() < 0.51


@pytest.mark.parametrize(("count", "sigma"), [(112, 2.5), (32, 3.0), (17, 3.0), (2, 3.0), (1, 3.0)])
def test_the_blur_is_opencvs(count, sigma):
    signal = np.random.default_rng(0).random((count, 1), np.float32)
    blurred = gaussian(count, sigma, torch.device("cpu")).numpy() @ signal
    assert np.allclose(blurred, cv2.GaussianBlur(signal, (0, 0), sigma).reshape(count, 1), atol=1e-5)

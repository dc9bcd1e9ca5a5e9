"""Pictures of an evaluation of the renderer: rows of a contact sheet."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.models.renderer import DualAttentionRenderer
from training.renderer.samples import Sample

CELL_WIDTH, CELL_HEIGHT = 180, 144
STRIP_HEIGHT = 48
STRIP_WIDTH = 4 * CELL_WIDTH
FINE_WIDTH, FINE_HEIGHT = 480, 384


def sheet_row(images: list[np.ndarray], pncc: Tensor) -> np.ndarray:
    """uint8 images [h, w, 3] and the PNCC [3, h, w] side by side, all of one size: [144, 720, 3] for three images."""
    colours = (pncc * 255).byte().permute(1, 2, 0).numpy()
    size = (CELL_WIDTH, CELL_HEIGHT)
    return np.concatenate([cv2.resize(np.ascontiguousarray(x), size) for x in (*images, colours)], axis=1)


def fine_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Rows of uint8 images [h, w, 3], enlarged to the same size."""
    size = (FINE_WIDTH, FINE_HEIGHT)
    enlarged = [[cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in row] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in enlarged])


@torch.inference_mode()
def attention_strip(network: DualAttentionRenderer, sample: Sample) -> np.ndarray:
    """The attention of three queries: the middle of the mouth and its left corner over the lip references, the chin
    over the face references. Each reference is shown warped onto the target, with its weight as a bar.

    Returns [48, 720, 3] uint8.
    """
    geometry = network.geometry(sample.pncc[None])
    row, column = sample.lip_cell.tolist()
    rows, columns = sample.lip_difference.shape[-2:]
    of_lips = network.lip(geometry[:, :, row : row + rows, column : column + columns], sample.lip_difference[None])
    of_face = network.face(geometry, sample.face_difference[None])
    inside = torch.nonzero(sample.lip_mask[0, row : row + rows, column : column + columns] > 0.5)
    middle = inside.float().mean(0).round().long().tolist()
    corner = inside[inside[:, 1].argmin()].tolist()
    chin = [min(row + rows + 2, geometry.shape[2] - 1), column + columns // 2]
    parts = [
        _bars(of_lips[0, :, middle[0], middle[1]], sample.lip_pixels),
        _bars(of_lips[0, :, corner[0], corner[1]], sample.lip_pixels),
        _bars(of_face[0, :, chin[0], chin[1]], sample.face_pixels),
    ]
    return cv2.resize(np.concatenate(parts, axis=1), (STRIP_WIDTH, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)


def _bars(weights: Tensor, references: Tensor) -> np.ndarray:
    """Pictures of references [N, 3, h, w] beside each other, 60 x 96 px each, with a bar for each of weights [N]."""
    pictures = []
    for weight, pixels in zip(weights.tolist(), references, strict=True):
        image = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
        picture = np.full((96, 60, 3), 255, np.uint8)
        picture[56:, :56] = cv2.resize(image, (56, 40))
        picture[56 - round(weight * 54) : 56, 16:40] = (40, 110, 200)
        pictures.append(picture)
    return np.concatenate(pictures, axis=1)

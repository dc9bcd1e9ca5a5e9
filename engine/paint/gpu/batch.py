"""Batches of pictures of many people, painted on one device in torch, as `engine.paint.painter` paints them on the CPU.

The references and base frames stay on the device. For each picture a few kilobytes of geometry are uploaded and the
changed part of the frame is downloaded; the CPU copies the base frames meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import MorphableModel
from engine.models.renderer import CELL_PX, RendererConfig
from engine.paint.gpu.atlas import ReferenceAtlas
from engine.paint.gpu.composite import blended, lip_masks, paste_masks, sharpened
from engine.paint.gpu.raster import Rasteriser
from engine.paint.gpu.transfer import Download, Upload
from engine.paint.shape import SHAPE_VERTICES, Shape

Runner = Callable[..., tuple[Tensor, ...]]  # inputs to outputs of a graph, on the device, queued on the current stream

POOL_THREADS = min(8, os.cpu_count() or 1)
RING = 4  # base frames that may be uploading at once; a further one waits for the first of them


@dataclass(frozen=True)
class PictureRow:
    """The inputs of one picture, computed on the CPU.

    canonical, mesh [V, 3], rotation [3]: the target's shape; lips [n, 2] and outlines [k, n, 2] as in `paint.window`;
    mesh, lips and outlines in pixels of the face window.  window: row and column of the face window in the crop,
    lip_cell: those of the lip window in the face window, in cells.  lip_slots, face_slots: references in the atlas, -1
    for none.  place: see `composite.blended`.  changed: rows and columns of `image` that change; under: index of the
    first pixel of that part on the device, and the pixels in a row there.
    """

    image: np.ndarray
    canonical: np.ndarray
    mesh: np.ndarray
    rotation: np.ndarray
    lips: np.ndarray
    outlines: np.ndarray
    window: tuple[int, int]
    lip_cell: tuple[int, int]
    lip_slots: tuple[int, ...]
    face_slots: tuple[int, ...]
    place: tuple[float, float, float, float]
    changed: tuple[slice, slice]
    under: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that change."""
        rows, columns = self.changed
        return rows.stop - rows.start, columns.stop - columns.start


class BatchPainter:
    """The device's side of painting; all avatars of a backend share it. Not thread-safe: only the inference thread
    uses it. References and frames of an avatar stay as long as the painter: servers open each avatar once.

    rasteriser: of `shape.triangles`.  renderer: `graphs.RendererGraph` in any form, on the device.  windows: the sizes
    of all windows.  pool: threads for decoding and copying; OpenCV, FFmpeg and numpy release the GIL.
    """

    def __init__(
        self,
        device: torch.device,
        rasteriser: Rasteriser,
        renderer: Runner,
        model: MorphableModel,
        windows: RendererConfig,
    ):
        self.device, self.windows, self.renderer = device, windows, renderer
        self._rasteriser = rasteriser
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="frames")
        self._stream = None if device.type == "cpu" else torch.cuda.Stream(device)
        with self._on_stream():
            self._codes = model.codes.to(device)
            self._atlas = ReferenceAtlas(device, rasteriser, SHAPE_VERTICES)
            self._frames = torch.zeros(0, 3, dtype=torch.uint8, device=device)
        self._frame_uploads = cycle([Upload(device) for _ in range(RING)])
        self._row_upload = Upload(device)
        self._download = Download(device)
        self._largest = [0, 0]  # rows and columns of the largest part of a frame that ever changes

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Work in the block is queued on the painter's stream."""
        on_device = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), on_device:
            yield

    def reserve(self, references: int, pixels: int, height: int, width: int) -> tuple[int, int]:
        """Make room for `references` and `pixels` of frames; height, width: the largest part of a frame that
        changes. Returns the first reference's slot and the first pixel's index. Copies everything, so call it at
        the start."""
        with self._on_stream():
            slot, start = self._atlas.reserve(references), len(self._frames)
            self._frames = torch.cat([self._frames, self._frames.new_zeros(pixels, 3)])
        self._largest = [max(self._largest[0], height), max(self._largest[1], width)]
        return slot, start

    def put_reference(self, slot: int, crop: np.ndarray, shape: Shape) -> None:
        """Upload a reference with crop [256, 256, 3] uint8."""
        with self._on_stream():
            uploaded = next(self._frame_uploads)(crop, shape.mesh, shape.canonical, shape.rotation)
            self._atlas.put(slot, *uploaded)

    def put_frame(self, slot: int, crop: np.ndarray, shape: Shape, start: int, pixels: np.ndarray) -> None:
        """Upload a base frame: crop and shape as reference `slot`, and its pixels [n, 3] uint8, to index `start`."""
        with self._on_stream():
            *reference, uploaded = next(self._frame_uploads)(crop, shape.mesh, shape.canonical, shape.rotation, pixels)
            self._atlas.put(slot, *reference)
            self._frames[start : start + len(pixels)] = uploaded

    def paint(self, rows: Sequence[PictureRow]) -> list[np.ndarray]:
        """The pictures of a batch, [H, W, 3] uint8 each."""
        with self._on_stream():
            self._download.start(self._paint(rows))
            pictures = list(self.pool.map(np.copy, [row.image for row in rows]))  # while the device computes
            changed = self._download.wait()
        for row, picture, part in zip(rows, pictures, changed, strict=True):
            height, width = row.size
            picture[row.changed] = part[:height, :width]
        return pictures

    def _paint(self, rows: Sequence[PictureRow]) -> Tensor:
        """The changed parts of the frames, [B, H, W, 3] uint8."""
        mesh, canonical, rotation, lips, outlines, place, cells, slots, under, size = self._row_upload(
            *(
                np.stack([getattr(row, name) for row in rows])
                for name in ("mesh", "canonical", "rotation", "lips", "outlines")
            ),
            np.array([row.place for row in rows], np.float32),
            np.array([(*row.window, *row.lip_cell) for row in rows]),
            np.array([(*row.lip_slots, *row.face_slots) for row in rows]),
            np.array([row.under for row in rows]),
            np.array([row.size for row in rows]),
        )
        lip_count = len(rows[0].lip_slots)
        config = self.windows
        height, width = CELL_PX * config.face_rows, CELL_PX * config.face_columns
        lip_height, lip_width = CELL_PX * config.lip_rows, CELL_PX * config.lip_columns
        corner, lip_cell = CELL_PX * cells[:, :2], cells[:, 2:]  # row and column
        triangle, weights = self._rasteriser.locate(mesh, height, width)
        inside = _inside(CELL_PX * lip_cell, lip_height, lip_width)
        lip_here = _grid(corner + CELL_PX * lip_cell, lip_height, lip_width)
        lay, person = self._atlas.lay, (canonical, rotation)
        of_lips = lay(slots[:, :lip_count], *person, (triangle[inside], weights[inside]), lip_here)
        of_faces = lay(slots[:, lip_count:], *person, (triangle, weights), _grid(corner, height, width))
        mask = lip_masks(lips, lip_cell, (config.face_rows, config.face_columns), (config.lip_rows, config.lip_columns))
        (pixels,) = self.renderer(
            self._rasteriser.codes(triangle, weights, self._codes),
            mask,
            lip_cell,
            of_lips.pixels,
            of_lips.difference,
            of_faces.pixels,
            of_faces.difference,
        )
        painted = sharpened((pixels + 1) * 127.5, mask).round().clamp(0, 255)
        soft = paste_masks(outlines, height, width)
        before = self._under(under, size)
        return blended(painted, soft, before, place, size).byte().permute(0, 2, 3, 1).contiguous()

    def _under(self, under: Tensor, size: Tensor) -> Tensor:
        """The frames' pixels from under [B, 2] on, [B, 3, H, W]; beyond size [B, 2] they repeat."""
        row = torch.arange(self._largest[0], device=self.device)
        column = torch.arange(self._largest[1], device=self.device)
        last = (size - 1).clamp(min=0)
        row, column = torch.minimum(row, last[:, :1]), torch.minimum(column, last[:, 1:])
        index = under[:, 0, None, None] + row[:, :, None] * under[:, 1, None, None] + column[:, None, :]
        # An index beyond the end, for a box outside its frame, would be a fatal error on a GPU.
        return self._frames[index.clamp(0, len(self._frames) - 1)].permute(0, 3, 1, 2).float()


def _grid(corner: Tensor, height: int, width: int) -> Tensor:
    """x and y of the pixels from corner [B, 2] (row, column) on: [B, 2, height, width] float32."""
    x = corner[:, 1, None, None] + torch.arange(width, device=corner.device)
    y = corner[:, 0, None, None] + torch.arange(height, device=corner.device)[:, None]
    return torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width)], 1).float()


def _inside(corner: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index of windows of [B, h, w, …] that begin at corner [B, 2] (row, column)."""
    row = corner[:, 0, None] + torch.arange(height, device=corner.device)
    column = corner[:, 1, None] + torch.arange(width, device=corner.device)
    batch = torch.arange(len(corner), device=corner.device)
    return batch[:, None, None], row[:, :, None], column[:, None, :]

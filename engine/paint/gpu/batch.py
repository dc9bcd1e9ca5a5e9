"""Pictures of many people painted on one device: what `engine.paint.painter` does on the CPU, for batches, in torch.

The references and base frames stay on the device; a batch goes up as a few kilobytes of geometry for each picture, and
what comes back is the part of each frame that changed. The base frames are copied meanwhile.
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
from engine.paint.align import SHAPE_VERTICES, Shape
from engine.paint.gpu.atlas import ReferenceAtlas
from engine.paint.gpu.composite import blended, lip_masks, paste_masks
from engine.paint.gpu.transfer import Download, Upload
from engine.paint.raster import Rasteriser

Runner = Callable[..., tuple[Tensor, ...]]  # inputs to outputs of a graph, on the device, queued on the current stream

POOL_THREADS = min(8, os.cpu_count() or 1)
RING = 4  # base frames that may be on their way up; more wait for the first of them


@dataclass(frozen=True)
class Plan:
    """One picture as far as the CPU says what is to be done; arrays are this picture's rows of a batch.

    canonical, mesh [V, 3], rotation [3], lips [n, 2] and outlines [k, n, 2] as in `paint.align` and `paint.window`,
    the last three in pixels of the window; window: its row and column in the crop, lip_cell: the lip window's in the
    window, both in cells.  faces, lips_near: slots of references, -1 for none.  place [4]: see `blend.blended`.
    rows, columns: the part of `image` that changes; under: where the pixels of that part begin on the device, and how
    many there are in a row.
    """

    image: np.ndarray
    canonical: np.ndarray
    mesh: np.ndarray
    rotation: np.ndarray
    lips: np.ndarray
    outlines: np.ndarray
    window: tuple[int, int]
    lip_cell: tuple[int, int]
    lips_near: tuple[int, ...]
    faces: tuple[int, ...]
    place: tuple[float, float, float, float]
    rows: slice
    columns: slice
    under: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class BatchPainter:
    """The device's side of painting; all avatars of a backend share it. It belongs to the inference thread. What an
    avatar has here stays as long as the canvas: servers open each once.

    rasteriser: of `align.triangles`.  renderer: `graphs.RendererGraph` in any form, on the device.  windows: the sizes
    that all windows have.  pool: threads for what need not be done in order: OpenCV, FFmpeg and numpy let others run.
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
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="canvas")
        self._stream = None if device.type == "cpu" else torch.cuda.Stream(device)
        with self.working():
            self._codes = model.codes.to(device)
            self.references = ReferenceAtlas(device, rasteriser, SHAPE_VERTICES)
            self._frames = torch.zeros(0, 3, dtype=torch.uint8, device=device)
        self._uploads = cycle([Upload(device) for _ in range(RING)])
        self._plans = Upload(device)
        self._download = Download(device)
        self._most = [0, 0]  # rows and columns of the largest part of a frame that ever changes

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it, work is queued on the canvas' own stream."""
        on_device = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), on_device:
            yield

    def reserve(self, references: int, pixels: int, height: int, width: int) -> tuple[int, int]:
        """Room for so many references, and for so many pixels of frames, of which [height, width] change in one at the
        most: the first reference's slot, and where the first pixel is. For the start: what is there may be moved."""
        with self.working():
            slot, start = self.references.reserve(references), len(self._frames)
            self._frames = torch.cat([self._frames, self._frames.new_zeros(pixels, 3)])
        self._most = [max(self._most[0], height), max(self._most[1], width)]
        return slot, start

    def put_reference(self, slot: int, crop: np.ndarray, shape: Shape) -> None:
        """A reference with crop [256, 256, 3] uint8."""
        with self.working():
            self.references.put(slot, *next(self._uploads)(crop, shape.mesh, shape.canonical, shape.rotation))

    def put_frame(self, slot: int, crop: np.ndarray, shape: Shape, start: int, pixels: np.ndarray) -> None:
        """A base frame: a reference, and pixels [n, 3] uint8 of it, to begin at `start`."""
        with self.working():
            *reference, sent = next(self._uploads)(crop, shape.mesh, shape.canonical, shape.rotation, pixels)
            self.references.put(slot, *reference)
            self._frames[start : start + len(pixels)] = sent

    def paint(self, plans: Sequence[Plan]) -> list[np.ndarray]:
        """The pictures of a batch, [H, W, 3] uint8 each."""
        with self.working():
            painted = self._paint(plans)
            self._download.start(painted)
            pictures = list(self.pool.map(np.copy, [plan.image for plan in plans]))  # while the device is at work
            changed = self._download.wait()
        for plan, picture, part in zip(plans, pictures, changed, strict=True):
            height, width = plan.size
            picture[plan.rows, plan.columns] = part[:height, :width]
        return pictures

    def _paint(self, plans: Sequence[Plan]) -> Tensor:
        """What the frames show where they change, [B, H, W, 3] uint8."""
        mesh, canonical, rotation, lips, outlines, place, cells, slots, under, size = self._plans(
            *(
                np.stack([getattr(p, name) for p in plans])
                for name in ("mesh", "canonical", "rotation", "lips", "outlines")
            ),
            np.array([p.place for p in plans], np.float32),
            np.array([(*p.window, *p.lip_cell) for p in plans]),
            np.array([(*p.lips_near, *p.faces) for p in plans]),
            np.array([p.under for p in plans]),
            np.array([p.size for p in plans]),
        )
        near = len(plans[0].lips_near)
        config = self.windows
        height, width = CELL_PX * config.face_rows, CELL_PX * config.face_columns
        lip_height, lip_width = CELL_PX * config.lip_rows, CELL_PX * config.lip_columns
        corner, lip_cell = CELL_PX * cells[:, :2], cells[:, 2:]  # row and column
        found, weights = self._rasteriser.locate(mesh, height, width)
        inside = _inside(CELL_PX * lip_cell, lip_height, lip_width)
        lip_here = _grid(corner + CELL_PX * lip_cell, lip_height, lip_width)
        lay, person = self.references.lay, (canonical, rotation)
        of_lips = lay(slots[:, :near], *person, (found[inside], weights[inside]), lip_here)
        of_faces = lay(slots[:, near:], *person, (found, weights), _grid(corner, height, width))
        mask = lip_masks(lips, lip_cell, (config.face_rows, config.face_columns), (config.lip_rows, config.lip_columns))
        (pixels,) = self.renderer(
            self._rasteriser.codes(found, weights, self._codes),
            mask,
            lip_cell,
            of_lips.pixels,
            of_lips.difference,
            of_faces.pixels,
            of_faces.difference,
        )
        painted = ((pixels + 1) * 127.5).round().clamp(0, 255)
        soft = paste_masks(outlines, height, width)
        before = self._under(under, size)
        return blended(painted, soft, before, place, size).byte().permute(0, 2, 3, 1).contiguous()

    def _under(self, under: Tensor, size: Tensor) -> Tensor:
        """The frames' pixels from under [B, 2] on, [B, 3, H, W]; beyond size [B, 2] they repeat."""
        row = torch.arange(self._most[0], device=self.device)
        column = torch.arange(self._most[1], device=self.device)
        last = (size - 1).clamp(min=0)
        row, column = torch.minimum(row, last[:, :1]), torch.minimum(column, last[:, 1:])
        index = under[:, 0, None, None] + row[:, :, None] * under[:, 1, None, None] + column[:, None, :]
        # An index beyond the end, for a box beside its frame, would end all work on a GPU.
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

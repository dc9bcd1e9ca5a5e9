"""Batches of pictures of many people, painted on one device in torch, as `engine.paint.painter` paints them on the CPU.

The references and base frames stay on the device. For each picture a few kilobytes of geometry are uploaded and the
changed part of the frame is downloaded; the CPU copies the base frames meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, FINE, References, RendererConfig
from engine.paint.gpu.atlas import ReferenceAtlas
from engine.paint.gpu.composite import blended, lip_masks, paste_masks, sharpened
from engine.paint.gpu.places import Places
from engine.paint.gpu.raster import Rasteriser
from engine.paint.gpu.transfer import Download, Upload, on_stream
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


@dataclass(frozen=True)
class Room:
    """An avatar's room on the device: the first slot of its references by zoom, and the index of its first pixel."""

    slots: Mapping[int, int]
    start: int


class BatchPainter:
    """The device's side of painting; all avatars of a backend share it, whose pictures one thread paints.

    rasteriser: of `shape.triangles`.  renderer: `graphs.RendererGraph` in any form, on the device.  windows: the sizes
    of all windows.  stream: all work is queued on it; None on a CPU.  pool: threads for decoding and copying; OpenCV,
    FFmpeg and numpy release the GIL.
    """

    def __init__(
        self,
        device: torch.device,
        rasteriser: Rasteriser,
        renderer: Runner,
        model: MorphableModel,
        windows: RendererConfig,
        stream: torch.cuda.Stream | None = None,
    ):
        self.device, self.windows, self.renderer = device, windows, renderer
        self._rasteriser, self._stream = rasteriser, stream
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="frames")
        with on_stream(stream):
            self._codes = model.codes.to(device)
            self._atlases = {zoom: ReferenceAtlas(device, rasteriser, SHAPE_VERTICES, zoom) for zoom in (1, FINE)}
            self._frames = torch.zeros(0, 3, dtype=torch.uint8, device=device)
        self._pixels = Places()  # of `_frames`
        self._released: deque[tuple[Room, int, int]] = deque()
        self._lock = threading.RLock()  # avatars may be opened while others are painted
        self._frame_uploads = cycle([Upload(device) for _ in range(RING)])
        self._row_upload = Upload(device)
        self._download = Download(device)
        self._largest = [0, 0]  # rows and columns of the largest part of a frame that ever changes

    def reserve(self, references: int, pixels: int, part: tuple[int, int], zooms: Sequence[int]) -> Room:
        """Room for an avatar with `references` at each of `zooms` and `pixels` of frames; part: height and width of the
        largest part of a frame that changes. May copy everything, so call it when the avatar is opened."""
        with self._lock, on_stream(self._stream):
            while self._released:
                self._take_back(*self._released.popleft())
            slots = {zoom: self._atlases[zoom].reserve(references) for zoom in zooms}
            start = self._pixels.take(pixels)
            more = self._frames.new_zeros(self._pixels.count - len(self._frames), 3)
            self._frames = torch.cat([self._frames, more]) if len(more) else self._frames
        self._largest = [max(before, now) for before, now in zip(self._largest, part, strict=True)]
        return Room(slots, start)

    def release(self, room: Room, references: int, pixels: int) -> None:
        """Another avatar may have the room that `reserve` returned for so many. Waits for nothing, as the collector of
        garbage may call it in any thread."""
        self._released.append((room, references, pixels))

    def _take_back(self, room: Room, references: int, pixels: int) -> None:
        for zoom, slot in room.slots.items():
            self._atlases[zoom].release(slot, references)
        self._pixels.give_back(room.start, pixels)

    @property
    def device_bytes(self) -> int:
        """Of all references and frames on the device."""
        return self._frames.nbytes + sum(atlas.device_bytes for atlas in self._atlases.values())

    def put_reference(self, room: Room, place: int, crop: np.ndarray, shape: Shape) -> None:
        """Upload reference `place` of an avatar, crop [S, S, 3] uint8 of its largest zoom."""
        with self._lock, on_stream(self._stream):
            uploaded = next(self._frame_uploads)(crop, shape.mesh, shape.canonical, shape.rotation)
            self._put(room, place, *uploaded)

    def put_frame(self, room: Room, place: int, crop: np.ndarray, shape: Shape, start: int, pixels: np.ndarray) -> None:
        """Upload a base frame: crop and shape as reference `place`, and its pixels [n, 3] uint8, to index `start`."""
        with self._lock, on_stream(self._stream):
            *reference, uploaded = next(self._frame_uploads)(crop, shape.mesh, shape.canonical, shape.rotation, pixels)
            self._put(room, place, *reference)
            self._frames[start : start + len(pixels)] = uploaded

    def _put(self, room: Room, place: int, crop: Tensor, *shape: Tensor) -> None:
        for zoom, slot in room.slots.items():
            self._atlases[zoom].put(slot + place, _reduced(crop, zoom * CROP_PX), *shape)

    def paint(self, rows: Sequence[PictureRow], zoom: int = 1) -> list[np.ndarray]:
        """The pictures of a batch, [H, W, 3] uint8 each, rendered with `zoom` pixels for each of a crop of 256 px."""
        with self._lock, on_stream(self._stream):
            self._download.start(self._paint(rows, zoom))
            pictures = list(self.pool.map(np.copy, [row.image for row in rows]))  # while the device computes
            changed = self._download.wait()
        for row, picture, part in zip(rows, pictures, changed, strict=True):
            height, width = row.size
            picture[row.changed] = part[:height, :width]
        return pictures

    def _paint(self, rows: Sequence[PictureRow], zoom: int) -> Tensor:
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
        corner, lip_cell = CELL_PX * cells[:, :2], cells[:, 2:]  # row and column
        triangle, weights = self._rasteriser.locate(mesh, height, width)
        of_lips, of_faces = self._references(
            slots, lip_count, zoom, (canonical, rotation), mesh, (triangle, weights), corner, lip_cell
        )
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

    def _references(
        self,
        slots: Tensor,
        lip_count: int,
        zoom: int,
        person: tuple[Tensor, Tensor],
        mesh: Tensor,
        coverage: tuple[Tensor, Tensor],
        corner: Tensor,
        lip_cell: Tensor,
    ) -> tuple[References, References]:
        """The lip references over the lip windows, the face references over the face windows of `coverage`."""
        windows, fine_px = self.windows, zoom * CELL_PX
        size, lip_size = (windows.face_rows, windows.face_columns), (windows.lip_rows, windows.lip_columns)
        middle = slice(CELL_PX // 2, None, CELL_PX)
        cells = coverage[0][:, middle, middle].contiguous(), coverage[1][:, middle, middle].contiguous()
        if zoom > 1:
            coverage = self._rasteriser.locate(zoom * mesh, *(fine_px * count for count in size))
        lip_px = fine_px * lip_size[0], fine_px * lip_size[1]
        inside, lip_cells = _inside(fine_px * lip_cell, *lip_px), _inside(lip_cell, *lip_size)
        lay = self._atlases[zoom].lay
        of_lips = lay(
            slots[:, :lip_count],
            *person,
            (coverage[0][inside], coverage[1][inside]),
            (cells[0][lip_cells], cells[1][lip_cells]),
            _grid(zoom * corner + fine_px * lip_cell, *lip_px),
        )
        here = _grid(zoom * corner, *(fine_px * count for count in size))
        return of_lips, lay(slots[:, lip_count:], *person, coverage, cells, here)

    def _under(self, under: Tensor, size: Tensor) -> Tensor:
        """The frames' pixels from under [B, 2] on, [B, 3, H, W]; beyond size [B, 2] they repeat."""
        row = torch.arange(self._largest[0], device=self.device)
        column = torch.arange(self._largest[1], device=self.device)
        last = (size - 1).clamp(min=0)
        row, column = torch.minimum(row, last[:, :1]), torch.minimum(column, last[:, 1:])
        index = under[:, 0, None, None] + row[:, :, None] * under[:, 1, None, None] + column[:, None, :]
        # An index beyond the end, for a box outside its frame, would be a fatal error on a GPU.
        return self._frames[index.clamp(0, len(self._frames) - 1)].permute(0, 3, 1, 2).float()


def _reduced(crop: Tensor, size_px: int) -> Tensor:
    """A crop [S, S, 3] uint8 at size_px, which divides S; each pixel is the rounded mean, as OpenCV's areas are."""
    if len(crop) == size_px:
        return crop
    means = functional.avg_pool2d(crop.permute(2, 0, 1).float(), len(crop) // size_px)
    return (means + 0.5).floor().permute(1, 2, 0)


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

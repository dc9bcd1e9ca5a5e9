"""One person's pictures on a GPU, as `engine.paint.painter.CpuPainter` paints them on the CPU. It computes the
inputs of each picture from the mesh; `engine.paint.gpu.batch` paints.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.models.morphable import CROP_PX, VERTICES, MorphableModel, project
from engine.models.renderer import CELL_PX, FINE
from engine.paint.align import Aligner
from engine.paint.composite import cut
from engine.paint.gpu.batch import BatchPainter, PictureRow, Room
from engine.paint.painter import FittedVideo
from engine.paint.references import FACE_REFERENCES, GPU_CACHED_FRAMES, LIP_REFERENCES, FrameCache, LipReferences
from engine.paint.shape import BEHIND_PX, CONTOUR, Shape
from engine.paint.window import Window, lip_outline, paste_outlines


@dataclass(frozen=True)
class _DeviceFrame:
    """A base frame on the device: its crop is the avatar's reference `place`, and the pixels of its `part` (rows,
    columns) begin at `start`. outline [n, 2]: its `window.paste_outlines`; posing [3, 3], origin [1, 3]: its pose as a
    linear map.
    """

    image: np.ndarray
    shape: Shape
    outline: np.ndarray
    posing: np.ndarray
    origin: np.ndarray
    place: int
    start: int
    part: tuple[slice, slice]

    def with_lower(self, where: np.ndarray, lower: np.ndarray) -> Shape:
        """The shape with vertices `where` [n] at lower [n, 3], as `Shape.posed` makes it, without a new rotation."""
        canonical = self.shape.canonical.copy()
        canonical[where] = lower
        canonical[VERTICES : VERTICES + len(CONTOUR)] = canonical[CONTOUR]
        mesh = canonical @ self.posing + self.origin
        mesh[VERTICES:, 2] += BEHIND_PX
        return Shape(mesh, canonical, self.shape.rotation)

    def under(self, row: int, column: int) -> tuple[int, int]:
        """The index on the device of that pixel of the frame, and the pixels in a row there."""
        rows, columns = self.part
        width = columns.stop - columns.start
        return self.start + (row - rows.start) * width + column - columns.start, width


class GpuPainter:
    """`PicturePainter` that paints through a `BatchPainter`.

    cached_frames: the number of base frames that stay on the device.
    """

    gains_by_batches = True

    def __init__(
        self,
        batch_painter: BatchPainter,
        video: FittedVideo,
        bank: Bank,
        model: MorphableModel,
        cached_frames: int = GPU_CACHED_FRAMES,
    ):
        self._zooms = (1, FINE) if bank.crops.shape[1] > CROP_PX else (1,)
        self._batch_painter, self._video = batch_painter, video
        self._aligner = Aligner(model, batch_painter.windows)
        self._vertices = model.vertices(video.alpha, video.beta)
        self._neutral = model.mean + model.shape(video.alpha)
        self._lower = np.flatnonzero(model.lower.numpy())
        self._boxes = video.crop.numpy()
        neutral = model.mean + model.shape(bank.alpha)
        shapes = list(map(Shape.posed, model.vertices(bank.alpha, bank.beta), neutral, bank.pose))
        self._banked = len(shapes)
        self._lips = LipReferences(shapes)
        self._room = self._reserved(cached_frames)
        for i, (crop, shape) in enumerate(zip(bank.crops.numpy(), shapes, strict=True)):
            batch_painter.put_reference(self._room, i, crop, shape)
        self._frames = FrameCache(video.frames, cached_frames, self._fetch, self._place, batch_painter.pool)

    def _reserved(self, cached_frames: int) -> Room:
        """Room on the device for the bank's references and the pixels in the boxes of the cached frames, until this
        painter goes."""
        side, (high, wide, _) = int(self._boxes[:, 2].max()), self._video.read(0).shape
        self._frame_pixels = min(side, high) * min(side, wide)
        windows = self._batch_painter.windows
        height, width = (
            min(most, math.ceil(CELL_PX * cells * side / CROP_PX) + 1)
            for most, cells in ((high, windows.face_rows), (wide, windows.face_columns))
        )
        references, pixels = self._banked + cached_frames, cached_frames * self._frame_pixels
        room = self._batch_painter.reserve(references, pixels, (height, width), self._zooms)
        weakref.finalize(self, self._batch_painter.release, room, references, pixels)
        return room

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """`PicturePainter.paint`."""
        return self.paint_together([(self, [(index, lower)], True)])[0][0]

    def paint_together(
        self, batch: Sequence[tuple[GpuPainter, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        """`PicturePainter.paint_together`; every picture of a run is rendered."""
        zooms = [painter._zooms[-1] if fine else 1 for painter, _, fine in batch]
        painted: dict[int, list[np.ndarray]] = {}  # by place in the batch
        for zoom in sorted(set(zooms)):
            places = [place for place, each in enumerate(zooms) if each == zoom]
            alike = [(batch[place][0], *frame) for place in places for frame in batch[place][1]]
            pictures = iter(self._paint(alike, zoom))
            painted |= {place: list(islice(pictures, len(batch[place][1]))) for place in places}
        return [painted[place] for place in range(len(batch))]

    def _paint(self, pictures: Sequence[tuple[GpuPainter, int, Tensor]], zoom: int) -> list[np.ndarray]:
        """Pictures (painter, index, lower); in halves where a painter cannot cache the frames of all of them."""
        indices: defaultdict[GpuPainter, list[int]] = defaultdict(list)
        for painter, index, _ in pictures:
            indices[painter].append(index)
        if len(pictures) > 1 and not all(painter._frames.holds(needed) for painter, needed in indices.items()):
            half = len(pictures) // 2
            return [*self._paint(pictures[:half], zoom), *self._paint(pictures[half:], zoom)]
        return self._batch_painter.paint([painter._row(i, lower, zoom) for painter, i, lower in pictures], zoom)

    def _row(self, index: int, lower: Tensor, zoom: int) -> PictureRow:
        """The picture of base frame `index` with lower [V_low, 3]; uploads the frames that are not cached."""
        frames = self._frames.faces(index)
        base = frames[0]
        shape = base.with_lower(self._lower, lower.numpy())
        outlines, lips = [*paste_outlines(shape.mesh), base.outline], lip_outline(shape.mesh)
        window, lip_window = self._aligner.windows(outlines, lips)
        first, faces = self._room.slots[zoom], [self._room.slots[zoom] + frame.place for frame in frames]
        slots = [*range(first, first + self._banked), *faces]
        lip_places = self._lips.choose(shape, [frame.shape for frame in frames])
        changed, place = pasted(base.image.shape, self._boxes[index], window)
        return PictureRow(
            image=base.image,
            canonical=shape.canonical,
            mesh=shape.mesh - np.array([window.left, window.top, 0], np.float32),
            rotation=shape.rotation,
            lips=window.local(lips).astype(np.float32),
            outlines=np.stack([window.local(outline) for outline in outlines]).astype(np.float32),
            window=(window.row, window.column),
            lip_cell=(lip_window.row, lip_window.column),
            lip_slots=_filled([slots[i] for i in lip_places], LIP_REFERENCES),
            face_slots=_filled(faces, FACE_REFERENCES),
            place=place,
            changed=changed,
            under=base.under(changed[0].start, changed[1].start),
        )

    def _fetch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Base frame `index` and its crop; in any thread."""
        image = self._video.read(index)
        return image, cut(image, self._boxes[index], self._zooms[-1] * CROP_PX)

    def _place(self, index: int, fetched: tuple[np.ndarray, np.ndarray], place: int) -> _DeviceFrame:
        """Upload a fetched base frame to that place on the device."""
        (image, crop), pose = fetched, self._video.pose[index]
        shape = Shape.posed(self._vertices[index], self._neutral[index], pose)
        origin = project(torch.zeros(1, 3), pose).numpy()
        frame = _DeviceFrame(
            image=image,
            shape=shape,
            outline=paste_outlines(shape.mesh)[0],
            posing=project(torch.eye(3), pose).numpy() - origin,
            origin=origin,
            place=self._banked + place,
            start=self._room.start + place * self._frame_pixels,
            part=_clipped(image.shape, self._boxes[index]),
        )
        pixels = image[frame.part].reshape(-1, 3)
        self._batch_painter.put_frame(self._room, frame.place, crop, shape, frame.start, pixels)
        return frame


def pasted(
    shape: tuple[int, ...], box: np.ndarray, window: Window
) -> tuple[tuple[slice, slice], tuple[float, float, float, float]]:
    """Rows and columns that the window covers in a frame of `shape`, and `PictureRow.place`, as in `composite.paste`.

    box: left, top and size of the crop in the frame.
    """
    left, top, size = (int(v) for v in box)
    scale = size / CROP_PX
    rows = _span(top, window.top, window.height, scale, shape[0])
    columns = _span(left, window.left, window.width, scale, shape[1])
    x = (columns.start + 0.5 - left) / scale - window.left - 0.5
    y = (rows.start + 0.5 - top) / scale - window.top - 0.5
    return (rows, columns), (1 / scale, x, y, float(scale >= 1))


def _span(corner: int, first: int, length: int, scale: float, limit: int) -> slice:
    begin = max(0, math.ceil(corner + first * scale))
    end = max(0, min(limit, int(corner + (first + length) * scale)))
    return slice(begin, max(begin, end))


def _clipped(shape: tuple[int, ...], box: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a frame of `shape` that its box covers."""
    left, top, size = (int(v) for v in box)
    rows, columns = (
        slice(*np.clip((start, start + size), 0, most).tolist()) for start, most in ((top, shape[0]), (left, shape[1]))
    )
    return rows, columns


def _filled(slots: list[int], count: int) -> tuple[int, ...]:
    return (*slots, *[-1] * (count - len(slots)))

"""One person's pictures on a device: what `paint.painter.Painter` is on the CPU. It says what is to be done, from the
mesh alone; `engine.paint.gpu.batch` does it."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.avatar.file import Bank
from engine.errors import SettingError
from engine.models.morphable import CROP_PX, VERTICES, MorphableModel, project
from engine.models.renderer import CELL_PX
from engine.paint.align import BEHIND_PX, CONTOUR, Aligner, Shape, nearest
from engine.paint.composite import cut
from engine.paint.gpu.batch import BatchPainter, Plan
from engine.paint.painter import LIP_REFERENCES, NEIGHBOURS, FittedVideo
from engine.paint.window import Window, lip_outline, paste_outlines

FRAMES = 40  # base frames that stay on the device: any eight pictures need no more, and sessions share them
AHEAD = 4  # frames that are being decoded or wait to be wanted
CONTOUR_INDEX = list(CONTOUR)


@dataclass(frozen=True)
class _Resident:
    """A base frame at one of its avatar's places on the device: its crop is the reference `slot`, and of its pixels the
    `part` of [rows, columns] is there from `start` on. outline: of its own `compose.paste_outlines`; posing [3, 3],
    origin [1, 3]: its pose as a linear map."""

    image: np.ndarray
    shape: Shape
    outline: np.ndarray
    posing: np.ndarray
    origin: np.ndarray
    place: int
    slot: int
    start: int
    part: tuple[slice, slice]

    def with_lower(self, where: np.ndarray, lower: np.ndarray) -> Shape:
        """Its shape with vertices `where` at lower [n, 3], as `Aligner.shape` makes it, without posing it anew."""
        canonical = self.shape.canonical.copy()
        canonical[where] = lower
        canonical[VERTICES : VERTICES + len(CONTOUR)] = canonical[CONTOUR_INDEX]
        mesh = canonical @ self.posing + self.origin
        mesh[VERTICES:, 2] += BEHIND_PX
        return Shape(mesh, canonical, self.shape.rotation)

    def under(self, row: int, column: int) -> tuple[int, int]:
        """Where on the device that pixel of the frame is, and how many there are in a row."""
        rows, columns = self.part
        width = columns.stop - columns.start
        return self.start + (row - rows.start) * width + column - columns.start, width


class GpuPainter:
    """Paints frames of one person on a canvas. Not thread-safe: it belongs to the inference thread.

    Raises SettingError for a bank of fine textures, which no canvas takes yet.
    """

    def __init__(self, canvas: BatchPainter, footage: FittedVideo, bank: Bank, model: MorphableModel):
        if bank.crops.shape[1] != CROP_PX:
            raise SettingError("--quality best is painted on the CPU alone; choose `--quality fast` or `--device cpu`")
        self.canvas, self._footage, self._model = canvas, footage, model
        self._aligner = Aligner(model, canvas.windows)
        self._vertices = model.vertices(footage.alpha, footage.beta)
        self._neutral = model.mean + model.shape(footage.alpha)
        self._lower = np.flatnonzero(model.lower.numpy())
        self._boxes = footage.crop.numpy()
        side, (high, wide, _) = int(self._boxes[:, 2].max()), footage.read(0).shape
        self._frame_pixels = min(side, high) * min(side, wide)
        height, width = (
            min(most, math.ceil(CELL_PX * cells * side / CROP_PX) + 1)
            for most, cells in ((high, canvas.windows.face_rows), (wide, canvas.windows.face_columns))
        )
        self._slot, self._start = canvas.reserve(len(bank.crops) + FRAMES, FRAMES * self._frame_pixels, height, width)
        neutral = model.mean + model.shape(bank.alpha)
        shapes = list(map(self._aligner.shape, model.vertices(bank.alpha, bank.beta), neutral, bank.pose))
        for i, (crop, shape) in enumerate(zip(bank.crops.numpy(), shapes, strict=True)):
            canvas.put_reference(self._slot + i, crop, shape)
        # Those of the bank, and behind them those of the frames that a picture is made of.
        self._banked, room = len(shapes), [shapes[0]] * (2 * NEIGHBOURS + 1)
        self._lips = np.stack([shape.lips for shape in (*shapes, *room)])
        self._turns = np.stack([shape.rotation for shape in (*shapes, *room)])
        self._cache: OrderedDict[int, _Resident] = OrderedDict()
        self._free = list(range(FRAMES))  # places on the device
        self._ahead: dict[int, Future[tuple[np.ndarray, np.ndarray]]] = {}  # frames that will be wanted next
        self._latest = 0

    @classmethod
    def of(cls, canvas: BatchPainter, avatar: Avatar, model: MorphableModel) -> GpuPainter:
        """The painter of an opened avatar."""
        return cls(canvas, FittedVideo.of(avatar), avatar.bank, model)

    def near(self, index: int) -> list[int]:
        """The base frames that a picture of `index` is made of: that one first, then its neighbours in time."""
        last = len(self._vertices) - 1
        return [index, *(i for i in range(index - NEIGHBOURS, index + NEIGHBOURS + 1) if i != index and 0 <= i <= last)]

    def plan(self, index: int, lower: Tensor) -> Plan:
        """The picture of base frame `index` with lower [V_low, 3]; uploads what of its frames is not there."""
        frames = [self._base(i) for i in self.near(index)]
        self._look_ahead(index)
        base = frames[0]
        shape = base.with_lower(self._lower, lower.numpy())
        outlines, lips = [*paste_outlines(shape.mesh), base.outline], lip_outline(shape.mesh)
        window, lip_window = self._aligner.windows(outlines, lips)
        for i, frame in enumerate(frames, self._banked):
            self._lips[i], self._turns[i] = frame.shape.lips, frame.shape.rotation
        slots = [*range(self._slot, self._slot + self._banked), *(frame.slot for frame in frames)]
        similar = nearest(shape, self._lips[: len(slots)], self._turns[: len(slots)], LIP_REFERENCES)
        box = self._boxes[index]
        rows, columns, place = pasted(base.image.shape, box, window)
        return Plan(
            image=base.image,
            canonical=shape.canonical,
            mesh=shape.mesh - np.array([window.left, window.top, 0], np.float32),
            rotation=shape.rotation,
            lips=window.local(lips).astype(np.float32),
            outlines=np.stack([window.local(outline) for outline in outlines]).astype(np.float32),
            window=(window.row, window.column),
            lip_cell=(lip_window.row, lip_window.column),
            lips_near=_filled([slots[i] for i in similar], LIP_REFERENCES),
            faces=_filled([frame.slot for frame in frames], 2 * NEIGHBOURS + 1),
            place=place,
            rows=rows,
            columns=columns,
            under=base.under(rows.start, columns.start),
        )

    def _look_ahead(self, index: int) -> None:
        """Have the frame decoded and cut that the next picture needs first, if the loop goes on as it went."""
        step = 1 if index >= self._latest else -1
        coming, self._latest = index + step * (NEIGHBOURS + 1), index
        if 0 <= coming < len(self._vertices) and coming not in self._cache and coming not in self._ahead:
            if len(self._ahead) == AHEAD:
                self._ahead.pop(next(iter(self._ahead)))  # the loop went elsewhere
            self._ahead[coming] = self.canvas.pool.submit(self._fetch, coming)

    def _fetch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Base frame `index` and its crop; in any thread."""
        image = self._footage.read(index)
        return image, cut(image, self._boxes[index])

    def _base(self, index: int) -> _Resident:
        """Base frame `index`, brought to the device where it is not there."""
        if index not in self._cache:
            self._cache[index] = self._bring(index)
            self._free.pop()
        self._cache.move_to_end(index)
        return self._cache[index]

    def _bring(self, index: int) -> _Resident:
        """Base frame `index` to the last of the free places."""
        fetched, pose = self._ahead.pop(index, None), self._footage.pose[index]
        image, crop = self._fetch(index) if fetched is None else fetched.result()
        if not self._free:
            self._free.append(self._cache.popitem(last=False)[1].place)
        place = self._free[-1]
        shape = self._aligner.shape(self._vertices[index], self._neutral[index], pose)
        origin = project(torch.zeros(1, 3), pose).numpy()
        frame = _Resident(
            image=image,
            shape=shape,
            outline=paste_outlines(shape.mesh)[0],
            posing=project(torch.eye(3), pose).numpy() - origin,
            origin=origin,
            place=place,
            slot=self._slot + self._banked + place,
            start=self._start + place * self._frame_pixels,
            part=_clipped(image.shape, self._boxes[index]),
        )
        self.canvas.put_frame(frame.slot, crop, shape, frame.start, image[frame.part].reshape(-1, 3))
        return frame


def paint(asked: Sequence[tuple[GpuPainter, int, Tensor]]) -> list[np.ndarray]:
    """`engine.paint.painter.paint` of painters that share a canvas: [H, W, 3] uint8 of (painter, index, lower)."""
    needed: defaultdict[GpuPainter, set[int]] = defaultdict(set)
    for painter, index, _ in asked:
        needed[painter].update(painter.near(index))
    if len(asked) > 1 and max(map(len, needed.values())) > FRAMES:  # they would push each other's frames out
        half = len(asked) // 2
        return [*paint(asked[:half]), *paint(asked[half:])]
    return asked[0][0].canvas.paint([painter.plan(index, lower) for painter, index, lower in asked])


def pasted(
    shape: tuple[int, ...], box: np.ndarray, window: Window
) -> tuple[slice, slice, tuple[float, float, float, float]]:
    """Rows and columns of a frame that the window covers, and `Plan.place`, as `compose.paste` has them."""
    left, top, size = (int(v) for v in box)
    scale = size / CROP_PX
    rows = _span(top, window.top, window.height, scale, shape[0])
    columns = _span(left, window.left, window.width, scale, shape[1])
    x = (columns.start + 0.5 - left) / scale - window.left - 0.5
    y = (rows.start + 0.5 - top) / scale - window.top - 0.5
    return rows, columns, (1 / scale, x, y, float(scale >= 1))


def _span(corner: int, first: int, length: int, scale: float, limit: int) -> slice:
    begin = max(0, math.ceil(corner + first * scale))
    end = max(0, min(limit, int(corner + (first + length) * scale)))
    return slice(begin, max(begin, end))


def _clipped(shape: tuple[int, ...], box: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a frame that its box covers."""
    left, top, size = (int(v) for v in box)
    rows, columns = (
        slice(*np.clip((start, start + size), 0, most).tolist()) for start, most in ((top, shape[0]), (left, shape[1]))
    )
    return rows, columns


def _filled(slots: list[int], count: int) -> tuple[int, ...]:
    return (*slots, *[-1] * (count - len(slots)))

"""The second pass of dubbing: new mouths in the pictures of a video, a few pictures at a time on all workers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import av
import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends.backend import Backend
from engine.models.morphable import MorphableModel
from engine.paint.painter import FittedVideo
from engine.paint.references import NEIGHBOURS
from precompute.dubbing.people import Run, boxes
from precompute.dubbing.planes import Region, edited
from precompute.dubbing.source import Picture
from precompute.progress import Clock

IN_FLIGHT = 3  # pictures that are being painted, or wait for an earlier one
HELD = IN_FLIGHT + 2 * NEIGHBOURS + 2  # pictures of the source in memory


@dataclass(frozen=True)
class NewMouth:
    """One face in one picture: picture t of its run, the new lips [V_low, 3], how far they replace the old ones, the
    weight of the painted pixels, and who wants to see the face before and after."""

    face: PaintedFace
    t: int
    lips: Tensor
    share: float
    pixels: float
    saw: Callable[[np.ndarray, np.ndarray], None] | None = None


class Window:
    """The pictures of the source that are in memory, by their numbers."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[int, Picture] = OrderedDict()

    def add(self, picture: Picture) -> None:
        self._pictures.pop(picture.number, None)
        self._pictures[picture.number] = picture
        while len(self._pictures) > HELD:
            self._pictures.popitem(last=False)

    def __getitem__(self, number: int) -> Picture:
        return self._pictures[number]


class PaintedFace:
    """A face through one run: a painter whose base frames are the squares around the face in the source's pictures."""

    def __init__(
        self,
        run: Run,
        size: tuple[int, int],
        bank: Bank,
        window: Window,
        model: MorphableModel,
        backend: Backend,
    ):
        """size: (width, height) of upright pictures.  window: holds each picture of the run when it is painted, and its
        neighbours in the run."""
        self._run, self._window = run, window
        self._boxes = boxes(run.crop, size)
        crop = torch.from_numpy(run.crop - np.pad(self._boxes[:, :2], ((0, 0), (0, 1))).astype(np.int32))
        video = FittedVideo(read=self._read, alpha=run.alpha, beta=run.beta, pose=run.pose, crop=crop)
        self._painter = backend.painter(video, bank, model)
        self._own = model.vertices(run.alpha, run.beta)[:, model.lower]

    def edit(self, picture: Picture, mouth: NewMouth) -> tuple[Region, np.ndarray, float]:
        """The region of the picture around the face, as it is and painted, and the weight of the painted pixels."""
        box = self._boxes[mouth.t]
        painted = self._painter.paint(mouth.t, self._own[mouth.t].lerp(mouth.lips, mouth.share))
        region = self._region(picture, mouth.t)
        full = region.rgb.copy()
        rows, columns = _inside(region, box)
        full[rows, columns] = painted
        if mouth.saw is not None:
            mouth.saw(region.rgb[rows, columns], painted)
        return region, full, mouth.pixels

    def _region(self, picture: Picture, t: int) -> Region:
        left, top, right, bottom = self._boxes[t].tolist()
        return Region(picture, (left, top, right, bottom))

    def _read(self, t: int) -> np.ndarray:
        region = self._region(self._window[self._run.start + t], t)
        rows, columns = _inside(region, self._boxes[t])
        return np.ascontiguousarray(region.rgb[rows, columns])


def _inside(region: Region, box: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of box (left, top, right, bottom) in the region."""
    left, top, right, bottom = box.tolist()
    return slice(top - region.top, bottom - region.top), slice(left - region.left, right - region.left)


def paint(
    pictures: Iterable[Picture],
    mouths: Callable[[int, Picture], Sequence[NewMouth]],
    window: Window,
    workers: int,
    first: int = 0,
    clock: Clock | None = None,
) -> Iterator[av.VideoFrame]:
    """The frames of `pictures` in their order, with their new mouths.

    mouths(k, picture): those of the k-th picture, counted from `first`; it is called in order, on the caller's thread.
    clock: counts the seconds of painting.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="paint") as pool:
        waiting: deque[tuple[int, Picture]] = deque()
        running: deque[Future[av.VideoFrame]] = deque()

        def start() -> None:
            k, picture = waiting.popleft()
            running.append(pool.submit(_painted, picture, mouths(k, picture), clock))

        try:
            for k, picture in enumerate(pictures, first):
                window.add(picture)
                waiting.append((k, picture))
                if len(waiting) > NEIGHBOURS:  # its neighbours in time are there
                    start()
                if len(running) > IN_FLIGHT:
                    yield running.popleft().result()
            while waiting:
                start()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _painted(picture: Picture, mouths: Sequence[NewMouth], clock: Clock | None) -> av.VideoFrame:
    if not mouths:
        return picture.frame
    with clock.spending("painting") if clock else nullcontext():
        return edited(picture, [mouth.face.edit(picture, mouth) for mouth in mouths])

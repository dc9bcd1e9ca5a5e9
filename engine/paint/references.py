"""The choice of the frames whose textures a picture uses: one policy for the CPU's and the GPU's painter.

A picture of base frame i has the face references i and its neighbours in time, and as lip references those of the bank
and of these frames that are most similar to the target. Decoded base frames are cached, since sessions of one avatar
play the same loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

import numpy as np

from engine.paint.shape import Shape

NEIGHBOURS = 2  # face references are the base frame and this many on each side: N_f = 5
FACE_REFERENCES = 2 * NEIGHBOURS + 1  # at the ends of the video there are fewer
LIP_REFERENCES = 6  # of the bank and the face references; docs/renderer.md has the figures
TURN_WEIGHT = 0.05  # squared model units for a squared radian: 10 degrees count like a lip offset of 0.04
CPU_CACHED_FRAMES = 16  # sessions of one avatar paint within 8 frames of each other, and need the neighbours
GPU_CACHED_FRAMES = 40  # any eight pictures need no more, wherever in the video they are
FETCHES_AHEAD = 4  # frames that are being decoded, or are decoded and wait until a picture needs them

Fetched = TypeVar("Fetched")
Cached = TypeVar("Cached")


def neighbours(index: int, frames: int) -> list[int]:
    """The base frames whose faces are references for a picture of base frame `index` of `frames`: `index` first, then
    its neighbours in time."""
    near = range(max(0, index - NEIGHBOURS), min(frames, index + NEIGHBOURS + 1))
    return [index, *(i for i in near if i != index)]


def distances(lips: np.ndarray, turns: np.ndarray, to_lips: np.ndarray, to_turn: np.ndarray) -> np.ndarray:
    """How much shapes with lips [N, 40, 3] and rotations [N, 3] differ from one with to_lips [40, 3] and to_turn [3]:
    squared model units [N]."""
    apart: np.ndarray = ((lips - to_lips) ** 2).sum(2).mean(1) + TURN_WEIGHT * ((turns - to_turn) ** 2).sum(1)
    return apart


def nearest(target: Shape, shapes: Sequence[Shape], count: int) -> list[int]:
    """Places of the `count` shapes that are most similar to `target` in lips and rotation, the nearest first."""
    return _nearest(target, np.stack([s.lips for s in shapes]), np.stack([s.rotation for s in shapes]), count)


def _nearest(target: Shape, lips: np.ndarray, turns: np.ndarray, count: int) -> list[int]:
    """`nearest` of shapes with lips [N, 40, 3] and rotations [N, 3]. Lip-Attention gives others almost no weight."""
    apart = distances(lips, turns, target.lips, target.rotation)
    return [int(i) for i in np.argsort(apart, kind="stable")[:count]]


class LipReferences:
    """The candidates for lip references: the bank, then the picture's face references, which are in the right light and
    may have the right lips."""

    def __init__(self, bank: Sequence[Shape]):
        self._banked = len(bank)
        room = [bank[0]] * FACE_REFERENCES
        self._lips = np.stack([shape.lips for shape in (*bank, *room)])
        self._turns = np.stack([shape.rotation for shape in (*bank, *room)])

    def choose(self, target: Shape, faces: Sequence[Shape]) -> list[int]:
        """Places in the bank followed by `faces` (at most FACE_REFERENCES) of the `LIP_REFERENCES` shapes that are
        nearest to `target`; fewer where there are fewer."""
        for i, shape in enumerate(faces, self._banked):
            self._lips[i], self._turns[i] = shape.lips, shape.rotation
        count = self._banked + len(faces)
        return _nearest(target, self._lips[:count], self._turns[:count], LIP_REFERENCES)


class FrameCache(Generic[Fetched, Cached]):
    """The most recently used base frames, at most `capacity` of them.

    fetch(i) decodes base frame i, in any thread.  place(i, fetched, n) makes the cached frame, in place n of
    the `capacity`, whose earlier frame is no longer used.  With a `pool`, the frame that the next picture needs, if the
    loop keeps its direction, is fetched there in advance.  A failed fetch raises its error where the frame is needed;
    the other frames stay cached. Not thread-safe.
    """

    def __init__(
        self,
        frames: int,
        capacity: int,
        fetch: Callable[[int], Fetched],
        place: Callable[[int, Fetched, int], Cached],
        pool: Executor | None = None,
    ):
        self.capacity = capacity
        self._frames, self._fetch, self._place, self._pool = frames, fetch, place, pool
        self._cached: OrderedDict[int, tuple[int, Cached]] = OrderedDict()  # the least recently used first
        self._free = list(range(capacity))
        self._ahead: dict[int, Future[Fetched]] = {}
        self._latest = 0

    def faces(self, index: int) -> list[Cached]:
        """The cached frames of `neighbours(index)`, in that order."""
        cached = [self._frame(i) for i in neighbours(index, self._frames)]
        if self._pool is not None:
            self._fetch_ahead(index, self._pool)
        return cached

    def holds(self, indices: Sequence[int]) -> bool:
        """Whether the cache can hold the frames for pictures of all these base frames at once."""
        return len({i for index in indices for i in neighbours(index, self._frames)}) <= self.capacity

    def _frame(self, index: int) -> Cached:
        if index not in self._cached:
            ahead = self._ahead.pop(index, None)
            fetched = self._fetch(index) if ahead is None else ahead.result()
            if not self._free:
                self._free.append(self._cached.popitem(last=False)[1][0])
            place = self._free[-1]
            self._cached[index] = place, self._place(index, fetched, place)
            self._free.pop()
        self._cached.move_to_end(index)
        return self._cached[index][1]

    def _fetch_ahead(self, index: int, pool: Executor) -> None:
        step = 1 if index >= self._latest else -1
        coming, self._latest = index + step * (NEIGHBOURS + 1), index
        if 0 <= coming < self._frames and coming not in self._cached and coming not in self._ahead:
            if len(self._ahead) == FETCHES_AHEAD:
                self._ahead.pop(next(iter(self._ahead)))  # the loop has jumped
            self._ahead[coming] = pool.submit(self._fetch, coming)

"""The idle pictures of an avatar: each is decoded once, whatever the number of its silent sessions."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from engine.live.job import IdleJob, Job, Outcome
from engine.live.pipeline import AvatarPipeline, Work
from engine.live.scheduler import Scheduler

KEPT = 8  # sessions of an avatar are within a frame of each other, and ask for three pictures ahead


class IdlePictures:
    """A client of the scheduler while it has sessions. All methods are called on the event loop."""

    def __init__(self, pipeline: AvatarPipeline, scheduler: Scheduler[Work[Job], Outcome]):
        self._pipeline, self._scheduler = pipeline, scheduler
        self._pictures: OrderedDict[int, np.ndarray] = OrderedDict()  # by base frame, the least recently used first
        self._wanted: dict[int, float] = {}  # base frames, and the loop times at which they are due, in order
        self._begun: set[int] = set()
        self._failure: Exception | None = None
        self._sessions = 0

    def join(self) -> None:
        """A session begins; `leave` when it ends."""
        self._sessions += 1
        if self._sessions == 1:
            self._scheduler.add(self)

    def leave(self) -> None:
        self._sessions -= 1
        if self._sessions == 0:
            self._scheduler.remove(self)
            self._wanted.clear()
            self._begun.clear()

    def at(self, base: int) -> np.ndarray | None:
        """The picture [H, W, 3] uint8 of base frame `base`, which readers share; None while it is not decoded. Raises
        the error of the decoding that failed last, if none has succeeded since."""
        picture = self._pictures.get(base)
        if picture is None and self._failure is not None:
            raise self._failure
        return picture

    def want(self, base: int, due_s: float) -> None:
        """A session shows base frame `base` at that loop time, if it is still silent."""
        if base in self._pictures:
            self._pictures.move_to_end(base)
        elif base not in self._begun and base not in self._wanted:
            self._wanted[base] = due_s
            self._scheduler.wake(self)

    def due(self) -> tuple[str, float] | None:
        """`scheduler.Client.due`."""
        return ("idle", next(iter(self._wanted.values()))) if self._wanted else None

    def begin(self) -> Work[Job]:
        """`scheduler.Client.begin`."""
        base = next(iter(self._wanted))
        del self._wanted[base]
        self._begun.add(base)
        return Work(self._pipeline, IdleJob(base))

    def finish(self, work: Work[Job], outcome: Outcome) -> None:
        """`scheduler.Client.finish`."""
        assert isinstance(work.job, IdleJob) and isinstance(outcome, list)
        self._begun.discard(work.job.base)
        self._failure = None
        (self._pictures[work.job.base],) = outcome
        while len(self._pictures) > KEPT:
            self._pictures.popitem(last=False)

    def fail(self, error: Exception) -> None:
        """`scheduler.Client.fail`."""
        self._begun.clear()
        self._failure = error

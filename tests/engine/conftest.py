"""What the engine's tests share: a clock that jumps, and a stand-in for the networks that costs nothing."""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.line import Line
from engine.metrics import StageTimes
from engine.models.geometry import GeometryState
from engine.models.speech import FRAME_SAMPLES, SpeechConfig, cut, init_state
from engine.motion import Loop
from engine.performer import Lips, Performer
from engine.timeline import HearJob, PaintJob

sys.path.insert(0, str(Path(__file__).parent))  # for player.py and talk.py, which stand beside their tests


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer, and that fails where nothing would ever happen again.

    Work for executors runs at once; `spend` inside it says how long it takes, and its result arrives so much later.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future, began = self.create_future(), self.now
        try:
            outcome = func(*args)
            deliver = lambda: future.cancelled() or future.set_result(outcome)  # noqa: E731
        except Exception as problem:
            error = problem
            deliver = lambda: future.cancelled() or future.set_exception(error)  # noqa: E731
        ended, self.now = self.now, began
        self.call_later(ended - began, deliver)
        return future


class JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        events = super().select(0)
        if not events:
            self._loop.now += max(0.0, timeout)
        return events


@pytest.fixture
def virtual() -> Callable[[Callable[[VirtualLoop], Coroutine[Any, Any, Any]]], Any]:
    """virtual(main): run `await main(loop)` on a virtual clock; fails on deadlock and on tasks left behind."""

    def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
        loop = VirtualLoop()
        problems: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        try:
            result = loop.run_until_complete(main(loop))
            assert not asyncio.all_tasks(loop), "tasks were left behind"
            assert not problems, problems
            return result
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.close()

    return run


class Puppet(Performer):
    """Stands in for the networks and the footage: lips [1, 3] are loudness, a picture is (base, lips, serial)."""

    config = SpeechConfig()

    def __init__(self, *, hear_s: float = 0.0, paint_s: float = 0.0) -> None:
        self.avatar = SimpleNamespace(name="puppet", loop=Loop("wrap", 0, 50))
        self.rest = torch.zeros(1, 3)
        self.first = np.zeros((1, 1, 3), np.float32)
        self.times = StageTimes()
        self.hear_s, self.paint_s = hear_s, paint_s
        self.painted: list[PaintJob] = []
        self.level: float | None = None  # lips that do not depend on the sound
        self.failure: Exception | None = None
        self.clock: VirtualLoop | None = None

    def new_line(self) -> Line:
        empty = torch.zeros(1, 1, 1, 1)
        return Line(
            init_state(self.config), GeometryState(empty, empty), self.config.step_frames, self.config.lookahead_frames
        )

    def _hear(self, batch: Any) -> list[Lips]:
        return [work.performer._heard(work.job) for work in batch]

    def _paint(self, batch: Any) -> list[np.ndarray]:
        return [work.performer._picture(work.job) for work in batch]

    def _heard(self, job: HearJob) -> Lips:
        self._spend(self.hear_s)
        windows, speech = cut(job.pcm, job.line.speech, self.config)
        assert len(windows) == 1
        loud = np.sqrt((windows[0].astype(np.float64).reshape(-1, FRAME_SAMPLES) ** 2).mean(1))
        here = slice(self.config.left_frames, self.config.left_frames + self.config.step_frames)
        total = job.line.geometry.keys + float(loud[here].sum())
        level = 10 * loud[here] + loud[-self.config.lookahead_frames :].sum() + 0.01 * float(total)
        level = level if self.level is None else np.full_like(level, self.level)
        lips = torch.from_numpy(level).float()[:, None, None].expand(-1, 1, 3)
        return Lips(speech, GeometryState(total, total), lips)

    def _picture(self, job: PaintJob) -> np.ndarray:
        self.painted.append(job)
        self._spend(self.paint_s if job.lips is not None else 0.0)
        level = -1.0 if job.lips is None else float(job.lips[0, 0])
        return np.array([[[job.base, level, len(self.painted)]]], np.float32)

    def _spend(self, seconds: float) -> None:
        if self.failure is not None:
            raise self.failure
        if self.clock is not None:
            self.clock.spend(seconds)


@pytest.fixture
def make_puppet() -> type[Puppet]:
    """`make_puppet(hear_s=..., paint_s=...)`; `opening_of(unit.image)` tells what it painted."""
    return Puppet


@pytest.fixture
def opening_of() -> Callable[[np.ndarray], float]:
    """How open the mouth of a puppet's picture is; 0 where it idles."""
    return lambda image: max(0.0, float(image[0, 0, 1]))


@pytest.fixture
def player(make_puppet):
    """A timeline with its puppet, driven frame by frame."""
    from player import Player

    return Player(make_puppet())

"""How finely and how often pictures are painted, so that the device keeps up: chosen from measured times and from the
pictures that come too late. Needs neither clock nor thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.config import SINGLE, Level
from engine.media import FPS

log = logging.getLogger(__name__)

MOST_STRIDE = 5  # five new pictures a second: fewer show no speech
CHEAPER = 0.95  # share of the load of a better pace; a smaller gain may be a measurement error
ROOM = 0.8  # load of a pace that is chosen although there is a cheaper one: encoders and viewers need the rest
WINDOW_S = 1.0
LEAST_FRAMES = 20  # of speech in a window
KEPT = 0.95  # share of the pictures of a window that come in time where the device keeps up
OVERLOADED_WINDOWS = 2  # consecutive ones before a step down
PATIENCE_S, MOST_PATIENCE_S = 10.0, 600.0  # speech with room for a better pace before a step up
PROBATION_S = 30.0  # a step down so soon after a step up doubles the patience


@dataclass(frozen=True)
class Pace:
    """Pictures at `level` for every `stride`th frame of speech."""

    level: Level
    stride: int = 1

    @property
    def run_frames(self) -> int:
        """Pictures that one job paints."""
        return 2 if self.level in SINGLE else 1

    def rates_hz(self, step_frames: int) -> dict[str, float]:
        """Jobs a second of a talking session, by stage; step_frames: the frames of a speech step."""
        return {self.level: FPS / self.run_frames / self.stride, "lips": FPS / step_frames}

    def __str__(self) -> str:
        return self.level if self.stride == 1 else f"{self.level}, a picture every {self.stride} frames"


class QualityController:
    """The pace of all sessions.

    levels: those that may be chosen, the best first.  load: the share of the device's time that the speaking sessions
    need at a pace, at the machine's present speed, of one session at least.

    The best level with room is chosen at the start. When pictures come too late for two seconds, the first cheaper pace
    that fits follows; a better one returns after seconds of room, and later after each attempt that failed. When not
    every picture can be made at the last level, every second one is, or every third.
    """

    def __init__(self, levels: Sequence[Level], load: Callable[[Pace], float]):
        self._load = load
        self._paces = [Pace(levels[0])]  # each cheaper than those before
        self._add_cheaper(Pace(level) for level in levels[1:])
        last_level = len(self._paces) - 1
        self._add_cheaper([Pace(self._paces[-1].level, stride) for stride in range(2, MOST_STRIDE + 1)])
        self._at = min(last_level, self._fitting())  # a slow moment at the start must not halve the rate
        self.reason = f"a talking session needs {self._shares()} of the device"
        self._since_s = float("-inf")  # of the window
        self._frames = self._fresh = 0
        self._overloaded = 0  # consecutive windows
        self._room_s = 0.0
        self._patience_s, self._stepped_up_s = PATIENCE_S, float("-inf")

    @property
    def pace(self) -> Pace:
        return self._paces[self._at]

    def _add_cheaper(self, paces: Iterable[Pace]) -> None:
        for pace in paces:
            if self._load(pace) < CHEAPER * self._load(self._paces[-1]):
                self._paces.append(pace)

    def _fitting(self) -> int:
        """The place of the first pace that fits: with room where another level follows, else at all."""
        for i, pace in enumerate(self._paces):
            another_level = i + 1 < len(self._paces) and self._paces[i + 1].stride == 1
            if self._load(pace) <= (ROOM if another_level else 1):
                return i
        return len(self._paces) - 1

    def _shares(self) -> str:
        return ", ".join(f"{self._load(pace):.0%} ({pace})" for pace in self._paces if pace.stride == 1)

    def observe(self, now_s: float, fresh: bool) -> None:
        """A frame of speech went out, with its own picture or not."""
        if now_s - self._since_s > 2 * WINDOW_S:  # the first one, or the first after a silence
            self._since_s, self._frames, self._fresh = now_s, 0, 0
        self._frames += 1
        self._fresh += fresh
        length_s = now_s - self._since_s
        if length_s < WINDOW_S or self._frames < LEAST_FRAMES:
            return
        kept = self._fresh / (self._frames // self.pace.stride)
        self._since_s, self._frames, self._fresh = now_s, 0, 0
        self._overloaded = self._overloaded + 1 if kept < KEPT else 0
        better = self._paces[self._at - 1] if self._at else None
        self._room_s = self._room_s + length_s if better and kept >= KEPT and self._load(better) <= ROOM else 0.0
        if self._overloaded == OVERLOADED_WINDOWS:
            self._step_down(now_s, kept)
        elif self._room_s >= self._patience_s:
            self._step_up(now_s)

    def _step_down(self, now_s: float, kept: float) -> None:
        self._overloaded = 0
        if self._at + 1 == len(self._paces):
            return
        failed = now_s - self._stepped_up_s < PROBATION_S
        self._patience_s = min(2 * self._patience_s, MOST_PATIENCE_S) if failed else PATIENCE_S
        self._go(max(self._at + 1, self._fitting()), f"{kept:.0%} of the pictures came in time at {self.pace}")

    def _step_up(self, now_s: float) -> None:
        self._stepped_up_s = now_s
        better = self._paces[self._at - 1]
        self._go(
            self._at - 1, f"there was room for {self._room_s:.0f} s; it needs {self._load(better):.0%} of the device"
        )

    def _go(self, place: int, reason: str) -> None:
        self._at, self.reason, self._room_s = place, reason, 0.0
        log.info("quality %s: %s", self.pace, reason)

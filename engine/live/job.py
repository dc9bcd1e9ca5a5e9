"""The jobs of timelines and avatars, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from engine.config import Level
from engine.live.segment import SpeechSegment
from engine.models.geometry import GeometryState
from engine.models.speech import SpeechState

Stage = Literal["lips", "idle"] | Level  # jobs of one stage can be done in one batch


@dataclass(frozen=True)
class LipsJob:
    """Compute the lips of the next step of `segment` from pcm [n] float32 at 16 kHz, for output frame `due`."""

    segment: SpeechSegment
    pcm: np.ndarray
    due: int

    @property
    def stage(self) -> Stage:
        return "lips"

    @property
    def numbers(self) -> list[int]:
        """Of its frames."""
        return [self.due]


class Frame(NamedTuple):
    """Output frame `due`: base frame `base` with lips [V_low, 3]."""

    base: int
    lips: Tensor
    due: int


@dataclass(frozen=True, eq=False)
class PaintJob:
    """Paint a run of frames at `level`. The network paints the first one, the others may be laid from it."""

    frames: tuple[Frame, ...]
    level: Level = "best"

    @property
    def due(self) -> int:
        return self.frames[0].due

    @property
    def stage(self) -> Stage:
        return self.level

    @property
    def numbers(self) -> list[int]:
        return [frame.due for frame in self.frames]


@dataclass(frozen=True)
class IdleJob:
    """Decode the idle picture of base frame `base`, for all silent sessions of the avatar."""

    base: int

    @property
    def stage(self) -> Stage:
        return "idle"

    @property
    def numbers(self) -> list[int]:
        return [self.base]


Job = LipsJob | PaintJob | IdleJob


@dataclass(frozen=True)
class Lips:
    """The outcome of a LipsJob: lips [step, V_low, 3] and the states from which the next step continues."""

    speech: SpeechState
    geometry: GeometryState
    lips: Tensor


Outcome = Lips | list[np.ndarray]  # of other jobs: the pictures [H, W, 3] uint8 of its frames

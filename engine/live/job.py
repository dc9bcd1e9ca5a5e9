"""The jobs of a timeline, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from engine.live.segment import SpeechSegment
from engine.models.geometry import GeometryState
from engine.models.speech import SpeechState

Stage = Literal["lips", "picture", "idle"]  # jobs of one stage can be done in one batch


@dataclass(frozen=True)
class LipsJob:
    """Compute the lips of the next step of `segment` from pcm [n] float32 at 16 kHz, for output frame `due`."""

    segment: SpeechSegment
    pcm: np.ndarray
    due: int

    @property
    def stage(self) -> Stage:
        return "lips"


@dataclass(frozen=True)
class PaintJob:
    """Paint output frame `due`: base frame `base` with lips [V_low, 3], or with None the idle picture of it."""

    base: int
    lips: Tensor | None
    due: int
    epoch: int

    @property
    def stage(self) -> Stage:
        return "idle" if self.lips is None else "picture"


Job = LipsJob | PaintJob


@dataclass(frozen=True)
class Lips:
    """The outcome of a LipsJob: lips [step, V_low, 3] and the states from which the next step continues."""

    speech: SpeechState
    geometry: GeometryState
    lips: Tensor


Outcome = Lips | np.ndarray  # of a PaintJob: the picture [H, W, 3] uint8

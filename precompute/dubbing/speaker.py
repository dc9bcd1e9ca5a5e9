"""The speaker of a video: the face whose mouth moves as the networks predict it for the original sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor

from engine.backends.backend import Backend
from engine.media import FPS
from engine.models.morphable import MorphableModel
from engine.models.persona import LipSpace
from precompute.dubbing.faces import Faces
from precompute.dubbing.mouths import talks
from precompute.dubbing.people import Person, Run
from precompute.persona import Persona, persona_of

MAX_LAG_FRAMES = 5
MIN_AGREEMENT = 0.2  # correlation of predicted and seen opening: eight speakers had 0.49 to 0.85, a silent face 0.13
MIN_SHARE = 0.5  # of the best agreement: a second speaker
TURN_S = 1.2  # between two speakers in one picture


@dataclass(frozen=True)
class Agreement:
    """How well a person's mouth agrees with the original sound: correlation, and the frames that it was taken over."""

    correlation: float
    frames: int


class OriginalSound:
    """The original sound of a video, as the networks hear it.

    features [T, D]: at 25 Hz.  offset_s: the time of its first sample, from the first picture.
    """

    def __init__(self, features: Tensor, offset_s: float, faces: Faces, model: MorphableModel, backend: Backend):
        self._features, self._offset_s, self._faces = features, offset_s, faces
        self._model, self._backend, self._space = model, backend, LipSpace(model)

    def agreement(self, person: Person) -> Agreement:
        """The best correlation over small lags of the predicted opening with that seen, over all runs of the person."""
        predicted = self._predicted(person)
        opening = self._space.opening(predicted).numpy()
        seen = np.concatenate([run.opening - run.opening.mean() for run in person.runs])
        place = np.concatenate([self._places(run) for run in person.runs])
        inside = (place >= 0) & (place < len(opening) - 1)
        if np.count_nonzero(inside) < FPS:
            return Agreement(0.0, 0)
        best = 0.0
        for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1):
            guess = np.interp(place[inside] + lag, np.arange(len(opening)), opening)
            best = max(best, float(np.nan_to_num(np.corrcoef(guess, seen[inside])[0, 1])))
        return Agreement(best, int(np.count_nonzero(inside)))

    def persona(self, person: Person) -> Persona:
        """How this person moves the lips, from the longest run while the original speaks."""
        run = max(person.runs, key=len)
        predicted = self._predicted(person)
        place = self._places(run)
        frames = np.arange(max(0, int(np.ceil(place[0]))), min(len(predicted), int(place[-1]) + 1))
        t = np.abs(np.searchsorted(place, frames)).clip(0, len(run) - 1)
        used = torch.from_numpy((talks(run, self._faces.rate_hz) & run.seen & ~run.covered)[t])
        template = (self._model.mean + self._model.shape(person.alpha))[self._model.lower]
        return persona_of(self._model, person.alpha, run.beta[t], predicted[frames] - template, used)

    def _places(self, run: Run) -> np.ndarray:
        """The frame of 25 Hz in the sound for each picture of a run."""
        places: np.ndarray = (self._faces.seconds(slice(run.start, run.stop)) - self._offset_s) * FPS
        return places

    def _predicted(self, person: Person) -> Tensor:
        """Lower vertices [T, V_low, 3] that the networks predict for the sound in the person's style."""
        template, state = self._model.mean + self._model.shape(person.alpha), self._backend.initial_state(1)
        parts = []
        for block in self._features.split(4 * FPS):
            lower, state = self._backend.step_geometry(block[None], person.style[None], template[None], state)
            parts.append(lower[0])
        return torch.cat(parts)


def speakers(people: Sequence[Person], agreements: Sequence[Agreement]) -> list[int]:
    """Numbers of the people who speak in the original sound; none where it is an off-screen voice."""
    best = max((a.correlation for a in agreements), default=0.0)
    return [
        person.number
        for person, a in zip(people, agreements, strict=True)
        if a.correlation >= max(MIN_AGREEMENT, MIN_SHARE * best)
    ]


def turns(people: Sequence[Person], pictures: int, rate_hz: float) -> dict[int, np.ndarray]:
    """For each speaker by number, the pictures [P] bool in which the speech is theirs: alone in the picture, or the one
    whose mouth moves most around that time."""
    window = max(1, round(TURN_S * rate_hz))
    motion = np.full((len(people), pictures), -1.0)
    for row, person in enumerate(people):
        for run in person.runs:
            speed = np.abs(np.gradient(run.opening)) if len(run) > 1 else np.zeros(1)
            smooth = uniform_filter1d(speed, window, mode="nearest")
            motion[row, run.start : run.stop] = smooth
    leading = motion.argmax(0)  # a face that never talks in a run, while its person is heard, is not the one who speaks
    return {person.number: (leading == row) & (motion[row] >= 0) for row, person in enumerate(people)}


def talking_share(person: Person, rate_hz: float) -> float:
    """The share of the person's pictures in which the mouth talks."""
    return float(np.concatenate([talks(run, rate_hz) for run in person.runs]).mean())

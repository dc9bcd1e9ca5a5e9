"""The speaker of a video: the face whose mouth moves as the networks predict it for the original sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d
from torch import Tensor

from engine.backends.backend import Backend
from engine.media import FPS
from engine.models.morphable import MorphableModel, mouth_opening
from precompute.dubbing.faces import Faces
from precompute.dubbing.mouths import talks
from precompute.dubbing.people import Person

MAX_LAG_FRAMES = 5
MIN_AGREEMENT = 0.2  # correlation of predicted and seen opening; other people's sound stays below 0.15
MIN_SHARE = 0.5  # of the best agreement: a second speaker
TURN_S = 1.2  # between two speakers in one picture


@dataclass(frozen=True)
class Agreement:
    """How well a person's mouth agrees with the original sound: correlation, and the frames that it was taken over."""

    correlation: float
    frames: int


def predicted_opening(features: Tensor, person: Person, model: MorphableModel, backend: Backend) -> np.ndarray:
    """Mouth opening [T] at 25 Hz that the networks predict for features [T, D] of the original sound."""
    template = model.mean + model.shape(person.alpha)
    state, opening = backend.initial_state(1), []
    for block in features.split(4 * FPS):
        lower, state = backend.step_geometry(block[None], person.style[None], template[None], state)
        vertices = template.repeat(len(block), 1, 1)
        vertices[:, model.lower] = lower[0]
        opening.append(mouth_opening(vertices).numpy())
    return np.concatenate(opening) if opening else np.zeros(0, np.float32)


def agreement(person: Person, predicted: np.ndarray, faces: Faces, offset_s: float = 0.0) -> Agreement:
    """The best correlation over small lags of the predicted opening [T] with that seen, over all runs of the person.

    offset_s: time of the first sample, from the first picture.
    """
    seen, at = [], []
    for run in person.runs:
        seen.append(run.opening - run.opening.mean())
        at.append((faces.seconds(slice(run.start, run.stop)) - offset_s) * FPS)
    place, opening = np.concatenate(at), np.concatenate(seen)
    inside = (place >= 0) & (place < len(predicted) - 1)
    if np.count_nonzero(inside) < FPS or not len(predicted):
        return Agreement(0.0, 0)
    best = 0.0
    for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1):
        guess = np.interp(place[inside] + lag, np.arange(len(predicted)), predicted)
        best = max(best, float(np.corrcoef(guess, opening[inside])[0, 1]))
    return Agreement(0.0 if np.isnan(best) else best, int(np.count_nonzero(inside)))


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

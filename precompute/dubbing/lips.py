"""Speech to the lips of one person at any time: computed at 25 Hz as live, sampled at each picture's own time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy.ndimage import binary_closing
from torch import Tensor

from engine.audio import SPEECH_SAMPLES_PER_FRAME
from engine.backends.backend import Backend
from engine.media import FPS
from engine.models.persona import PersonaMap
from engine.models.speech import cut, init_state

QUIET_DB, FLOOR_DB = -38.0, -58.0  # below the loud parts of the speech, and of full scale
PAUSE_FRAMES = 8  # a shorter pause belongs to the speech: lips do not come to rest in it
BEFORE_FRAMES, AFTER_FRAMES = 3, 5  # of motion around the sound
RAMP_FRAMES = 4  # from rest to speech and back


def spoken(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Where speech is heard: [T] bool, 25 a second, of sound in blocks [n] float32 at 16 kHz. Short pauses count."""
    power: list[float] = []
    for frame in _frames(blocks):
        power.append(float(np.square(frame).mean()))
    level_db = 10 * np.log10(np.array(power) + 1e-12)
    if not len(level_db):
        return np.zeros(0, bool)
    loud = max(float(np.percentile(level_db, 95)) + QUIET_DB, FLOOR_DB)
    heard = np.pad(level_db > loud, PAUSE_FRAMES)
    return binary_closing(heard, np.ones(PAUSE_FRAMES))[PAUSE_FRAMES:-PAUSE_FRAMES]


def share_of_speech(heard: np.ndarray) -> np.ndarray:
    """How far the lips follow the speech instead of resting, from `spoken` [T]: [T + the motion after it] in [0, 1]."""
    heard = np.pad(heard, (0, AFTER_FRAMES + RAMP_FRAMES))
    at = np.arange(len(heard))
    since = at - np.maximum.accumulate(np.where(heard, at, -np.inf))
    until = np.minimum.accumulate(np.where(heard, at, np.inf)[::-1])[::-1] - at
    late, early, begun = since - AFTER_FRAMES, until - BEFORE_FRAMES, at + 1
    ramp = np.maximum(1 - late.clip(0) / (RAMP_FRAMES + 1), 1 - early.clip(0) / (RAMP_FRAMES + 1)).clip(0, 1)
    share: np.ndarray = np.minimum(ramp, begun / (RAMP_FRAMES + 1))
    return share


def _frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Whole frames [640]; silence completes the last."""
    rest = np.zeros(0, np.float32)
    for block in itertools.chain(blocks, (None,)):
        rest = np.concatenate(
            [rest, np.zeros(-len(rest) % SPEECH_SAMPLES_PER_FRAME, np.float32) if block is None else block]
        )
        whole = len(rest) // SPEECH_SAMPLES_PER_FRAME * SPEECH_SAMPLES_PER_FRAME
        yield from rest[:whole].reshape(-1, SPEECH_SAMPLES_PER_FRAME)
        rest = rest[whole:]


def speech_features(blocks: Iterable[np.ndarray], backend: Backend) -> Iterator[Tensor]:
    """Features [step, D] of sound in blocks [n] float32 at 16 kHz, a step at a time, to beyond its end."""
    config = backend.speech_config
    state = init_state(config)
    for block in itertools.chain(blocks, (np.zeros(config.window_samples, np.float32),)):
        windows, state = cut(block, state, config)
        for window in windows:
            yield backend.encode_speech(torch.from_numpy(window[None]))[0]


class Lips:
    """Lips over time, asked for forwards. Holds a few frames, whatever the length of the speech.

    features: as `speech_features` makes them.  share: of `share_of_speech`.  template [V, 3], style [D], rest
    [V_low, 3], persona: of the person.
    """

    def __init__(
        self,
        features: Iterable[Tensor],
        share: np.ndarray,
        backend: Backend,
        *,
        template: Tensor,
        style: Tensor,
        rest: Tensor,
        persona: PersonaMap,
    ):
        self._share, self._rest, self._persona = share, rest, persona
        self._made = self._steps(features, backend, template, style)
        self._held: dict[int, Tensor] = {}
        self._next = 0

    def at(self, speech_s: float, duration_s: float) -> Tensor:
        """Lips [V_low, 3] of a picture that is shown from `speech_s` after the start of the speech, for `duration_s`.

        They are those in the middle of its time. Times must not decrease. Rest before and after the speech.
        """
        place = (speech_s + duration_s / 2) * FPS - 0.5
        first = int(np.floor(place))
        before, after = self._frame(first), self._frame(first + 1)
        for old in [n for n in self._held if n < first]:
            del self._held[old]
        return before.lerp(after, place - first)

    def _frame(self, n: int) -> Tensor:
        if not 0 <= n < len(self._share) or not self._share[n]:
            return self._rest
        while self._next <= n:
            self._held[self._next] = next(self._made)
            self._next += 1
        return self._rest.lerp(self._held[n], float(self._share[n]))

    def _steps(self, features: Iterable[Tensor], backend: Backend, template: Tensor, style: Tensor) -> Iterator[Tensor]:
        state = backend.initial_state(1)
        for step in features:
            lips, state = backend.step_geometry(step[None], style[None], template[None], state)
            yield from self._persona(lips[0].clone())

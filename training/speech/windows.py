"""Training windows of the speech encoder with the targets of every frame."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.models.speech import FRAME_SAMPLES, SpeechConfig
from training.speech.augmentation import augment, stretch
from training.speech.teacher import Target, Utterance

SPOKEN_SHARE = 0.3  # of the drawn windows are of sentences with known phonemes
UNKNOWN = -100  # the label that cross entropy ignores
UNHEARD_FRAMES = 5  # at a window's start, without context


@dataclass(frozen=True)
class Batch:
    """windows [B, N] of pcm; for all F frames of a window: targets [B, F, D] and their weights [B, F], zero where
    unknown; units [B, F], the nearest of the teacher's k-means; phonemes [B, F] by number, or UNKNOWN; masked [B, F]
    bool."""

    windows: Tensor
    targets: Tensor
    weights: Tensor
    units: Tensor
    phonemes: Tensor
    masked: Tensor


class Windows:
    """Draws random windows of random utterances with their targets, as in a stream (silence before the start)."""

    def __init__(
        self,
        utterances: list[Utterance],
        target: Target,
        units: np.ndarray,
        phonemes: list[str],
        config: SpeechConfig,
        seed: int,
    ) -> None:
        self._pcm = [u.pcm for u in utterances]
        self._targets = [target(u.features) for u in utterances]
        number = {symbol: i for i, symbol in enumerate(phonemes)}
        self._phonemes = [np.array([number.get(s, UNKNOWN) for s in u.phonemes[: len(u.features)]]) for u in utterances]
        self._centres = units
        frames = np.array([len(rows) for rows in self._targets], np.float64)
        spoken = np.array([any(u.phonemes) for u in utterances])
        for kind, share in ((spoken, SPOKEN_SHARE), (~spoken, 1 - SPOKEN_SHARE)):
            frames[kind] *= share / max(1.0, frames[kind].sum())
        self._chance = frames / frames.sum()
        self._config = config
        self._rng = np.random.default_rng(seed)

    def _window(self, which: int, first: int, frames: int) -> np.ndarray:
        """PCM [N] of `frames` frames from `first` on, which may lie before the start or past the end."""
        begin, end = first * FRAME_SAMPLES, (first + frames) * FRAME_SAMPLES
        part = self._pcm[which][max(begin, 0) : max(end, 0)].astype(np.float32) / 32768
        return np.pad(part, (max(-begin, 0), frames * FRAME_SAMPLES - max(-begin, 0) - len(part)))

    def _spans(self) -> np.ndarray:
        """The masked frames [F] bool of a window: in half of the windows one to three spans of 200-400 ms."""
        frames = self._config.window_frames
        masked = np.zeros(frames, bool)
        if self._rng.random() < 0.5:
            for _ in range(int(self._rng.integers(1, 4))):
                first = int(self._rng.integers(UNHEARD_FRAMES, frames - 4))
                masked[first : first + int(self._rng.integers(5, 11))] = True
        return masked

    def draw(self, batch: int) -> Batch:
        frames, left = self._config.window_frames, self._config.left_frames
        weight = np.full(frames, 0.5, np.float32)
        weight[:UNHEARD_FRAMES], weight[left:] = 0, 1
        rows: dict[str, list[np.ndarray]] = defaultdict(list)
        for which in self._rng.choice(len(self._pcm), batch, p=self._chance):
            truth = self._targets[which]
            first = int(self._rng.integers(-left, max(1, len(truth) - left)))
            speed = float(self._rng.uniform(0.85, 1.18)) if self._rng.random() < 0.6 else 1.0
            pcm = stretch(self._window(which, first, frames + 6), speed, frames * FRAME_SAMPLES)
            other = self._window(int(self._rng.integers(len(self._pcm))), 0, frames)
            rows["windows"].append(augment(pcm, self._rng, other))
            # Frame f's centre, at f + 1/2 frames, was spoken at (f + 1/2) * speed after the window's start.
            place = first + (np.arange(frames) + 0.5) * speed - 0.5
            low = np.floor(place).astype(int)
            share = (place - low)[:, None].astype(np.float32)
            index = low.clip(0, len(truth) - 2)
            known = (low >= 0) & (low < len(truth) - 1)
            phonemes = self._phonemes[which][np.rint(place).astype(int).clip(0, len(truth) - 1)]
            target = (1 - share) * truth[index] + share * truth[index + 1]
            distance = (self._centres**2).sum(1) - 2 * target @ self._centres.T
            rows["targets"].append(target)
            rows["weights"].append(weight * known)
            rows["units"].append(distance.argmin(1))
            rows["phonemes"].append(np.where(known & (weight > 0), phonemes, UNKNOWN))
            rows["masked"].append(self._spans())
        return Batch(**{name: torch.from_numpy(np.stack(parts)) for name, parts in rows.items()})

"""The training corpus of the geometry generator: fitted clips with their sound, and crops drawn from them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import MorphableModel
from training.data.clips import Clip, fit_path, load_fit, load_track, read_all, track_path

CROP_FRAMES = 64
STYLE_FRAMES = 40  # drawn anew each time, so that the style does not depend on the sample
IDENTITY_FRAMES = 1000  # a person's weight is that of at most 40 s
GENERATED_WEIGHT = 0.6
SPOKEN_SHARE = 0.3


@dataclass(frozen=True)
class Example:
    """A fitted clip: shape alpha [K], expression beta [T, K] from frame `start` of the clip, pcm [N] float32."""

    clip: Clip
    alpha: Tensor
    beta: Tensor
    start: int
    pcm: np.ndarray

    @property
    def weight(self) -> float:
        """The weight of a frame: small faces are tracked badly, and lips of generated videos are estimates."""
        return min(1.0, self.clip.face_px / 120) * (GENERATED_WEIGHT if self.clip.kind == "generated" else 1.0)


def load_examples(data: Path, runs: Path) -> list[Example]:
    """All clips with sound and a fit, in the order of the manifest."""
    examples = []
    for clip in read_all(data):
        path = fit_path(runs, clip)
        if clip.kind == "real_silent" or not path.exists():
            continue
        fit, start = load_fit(path)
        pcm = load_track(track_path(runs, clip)).pcm.astype(np.float32) / 32768
        alpha = torch.from_numpy(fit.alpha).mean(0)
        examples.append(Example(clip, alpha, torch.from_numpy(fit.beta), start, pcm))
    return examples


@dataclass(frozen=True)
class Item:
    """One stretch of training material: features [T, D], target expression beta [T, K], and known [T]: 1 where the
    target is valid, else 0.

    contact [T]: 1 where the lips must touch, -1 where they must not, 0 where neither is required, independent of
    `known`.  example: index of the example that gives shape and style.
    """

    features: Tensor
    beta: Tensor
    known: Tensor
    contact: Tensor
    example: int


class Corpus:
    """Draws crops of items at random. Clips are weighted, and no person counts for more than IDENTITY_FRAMES.

    A share SPOKEN_SHARE of a batch are `spoken` items, for which only contacts are known, each with a random face.
    """

    def __init__(
        self,
        examples: list[Example],
        items: list[Item],
        model: MorphableModel,
        seed: int,
        spoken: list[Item] | None = None,
    ) -> None:
        self._examples, self._items, self._model, self._spoken = examples, items, model, spoken or []
        self._rng = np.random.default_rng(seed)
        self._same: dict[str, list[int]] = defaultdict(list)
        frames: dict[str, float] = defaultdict(float)
        for item in items:
            example = examples[item.example]
            self._same[example.clip.identity].append(item.example)
            frames[example.clip.identity] += len(item.beta)
        chance = np.array(
            [
                len(item.beta)
                * examples[item.example].weight
                * min(1.0, IDENTITY_FRAMES / frames[examples[item.example].clip.identity])
                for item in items
            ]
        )
        self._chance = chance / chance.sum()
        self._people = [item.example for item in items]

    def _style_beta(self, which: int) -> Tensor:
        """Expressions [STYLE_FRAMES, K] of the person in example `which`, often from another clip."""
        if self._rng.random() < 0.5:
            which = int(self._rng.choice(self._same[self._examples[which].clip.identity]))
        beta = self._examples[which].beta
        return beta[torch.from_numpy(self._rng.integers(0, len(beta), STYLE_FRAMES))]

    def draw(self, batch: int) -> dict[str, Tensor]:
        """features [B, T, D], beta [B, T, K], known and contact [B, T], template [B, V, 3], style vertices
        [B, S, V, 3], styled [B, 1] (0: without style, so that the network learns to speak without one)."""
        rows: dict[str, list[Tensor]] = defaultdict(list)
        others = int(SPOKEN_SHARE * batch) if self._spoken else 0
        items = [self._items[i] for i in self._rng.choice(len(self._items), batch - others, p=self._chance)]
        for i in self._rng.integers(0, max(1, len(self._spoken)), others):
            items.append(replace(self._spoken[i], example=int(self._rng.choice(self._people))))
        for item in items:
            first = int(self._rng.integers(0, max(1, len(item.beta) - CROP_FRAMES + 1)))
            missing = CROP_FRAMES - len(item.beta[first : first + CROP_FRAMES])
            for name in ("features", "beta", "known", "contact"):
                part = getattr(item, name)[first : first + CROP_FRAMES]
                rows[name].append(torch.cat([part, part.new_zeros(missing, *part.shape[1:])]))
            rows["template"].append(self._model.mean + self._model.shape(self._examples[item.example].alpha))
            rows["style"].append(self._model.mean + self._model.expression(self._style_beta(item.example)))
            rows["styled"].append(torch.tensor([float(self._rng.random() > 0.15)]))
        return {name: torch.stack(parts) for name, parts in rows.items()}

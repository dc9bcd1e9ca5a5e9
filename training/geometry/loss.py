"""Fitted clips as material for stage one: what to learn from, the loss, one training run, and a prediction."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from training.data.clips import Clip, fit_path, load_fit, load_track, read_manifest, track_path
from training.optimisation import Run

log = logging.getLogger(__name__)

CROP_FRAMES = 64
STYLE_FRAMES = 40  # drawn anew each time: a style has to survive the sampling
IDENTITY_FRAMES = 1000  # nobody counts for more than 40 s
GENERATED_WEIGHT = 0.6
FEATURE_NOISE, CHANNEL_DROPOUT = 0.3, 0.1
SPOKEN_SHARE = 0.3
TOUCHING = 0.012  # model units: an opening that the renderer draws closed
APART = 0.06  # the median opening of the training people
CONTACT_WEIGHT = 1.5
# Pairs of the inner lips from corner to corner, and their gaps beside that of the middle: of the training people, alike
# for mouths open a little and wide.
UPPER_LIP, UNDER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415), (95, 88, 178, 87, 14, 317, 402, 318, 324)
GAPS = (0.33, 0.59, 0.82, 0.97, 1.0, 0.97, 0.82, 0.59, 0.33)


@dataclass(frozen=True)
class Example:
    """A fitted clip: shape alpha [K], expression beta [T, K], the frame where they begin, sound [N] float32."""

    clip: Clip
    alpha: Tensor
    beta: Tensor
    start: int
    pcm: np.ndarray

    @property
    def weight(self) -> float:
        """How much a frame of it counts: small faces are tracked badly, generated lips are somebody's guess."""
        return min(1.0, self.clip.face_px / 120) * (GENERATED_WEIGHT if self.clip.kind == "generated" else 1.0)


def load_examples(data: Path, runs: Path) -> list[Example]:
    """All clips with sound and a fit; sorted as in the manifest."""
    examples = []
    for clip in read_manifest(data):
        path = fit_path(runs, clip)
        if clip.kind == "real_silent" or not path.exists():
            continue
        found, start = load_fit(path)
        pcm = load_track(track_path(runs, clip)).pcm.astype(np.float32) / 32768
        alpha = torch.from_numpy(found.alpha).mean(0)
        examples.append(Example(clip, alpha, torch.from_numpy(found.beta), start, pcm))
    return examples


@dataclass(frozen=True)
class Item:
    """One stretch to learn from: features [T, D], targets beta [T, K], known [T] (0 or 1), style source by index.

    `contact` [T]: 1 where the lips must touch, -1 where they must not, whatever else is known.
    """

    features: Tensor
    beta: Tensor
    known: Tensor
    contact: Tensor
    example: int


class Corpus:
    """Items and how to draw crops of them; people are capped, clips weighted.

    SPOKEN_SHARE of what is drawn are the `spoken` items, of which only the contacts are known, with anybody's face.
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
        [B, S, V, 3], styled [B, 1] (0: learn to do without)."""
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


class GeometryLoss:
    """Positions (lips count more, depth less), velocities, and the mouth's opening, in hundredths of a model unit."""

    def __init__(self, model: MorphableModel) -> None:
        index = model.lower.nonzero().flatten().tolist()
        place = {vertex: i for i, vertex in enumerate(index)}
        self._basis = model.expression_basis[:, index]
        weight = torch.ones(len(index), 3)
        weight[[place[v] for v in {*LIPS_OUTER, *LIPS_INNER}]] = 5.0
        self._weight = weight * torch.tensor([1.0, 1.0, 0.3]) / weight.sum()
        self._above, self._below = [place[v] for v in UPPER_LIP], [place[v] for v in UNDER_LIP]
        self._profile = torch.tensor(GAPS)

    def offsets(self, beta: Tensor) -> Tensor:
        """True offsets of the lower vertices [..., V_low, 3]."""
        return torch.einsum("...k,kvc->...vc", beta, self._basis)

    def opening(self, vertices: Tensor) -> Tensor:
        """Height of the inner lips [...] of lower vertices [..., V_low, 3]: the middle three gaps."""
        return self._gaps(vertices)[..., 3:6].mean(-1)

    def _gaps(self, vertices: Tensor) -> Tensor:
        gaps = vertices[..., self._above, :] - vertices[..., self._below, :]
        return torch.linalg.vector_norm(gaps, dim=-1)

    def __call__(self, made: Tensor, template: Tensor, beta: Tensor, known: Tensor, contact: Tensor) -> Tensor:
        """made, template: lower vertices [B, T, V_low, 3] and [B, V_low, 3]; beta [B, T, K]; known, contact [B, T]."""
        true = template[:, None] + self.offsets(beta)
        error = (made - true) * 100
        position = (error.square() * self._weight).sum((-1, -2))
        change = (error[:, 1:] - error[:, :-1]).square() * self._weight
        both = known[:, 1:] * known[:, :-1]
        wanted = self.opening(true)
        opening = ((self.opening(made) - wanted) * 100).square()
        opening = opening * (1 + 2 * (wanted < 0.02))  # a mouth that does not close is what viewers notice
        still = (change.sum((-1, -2)) * both).sum() / both.sum()
        gaps = self._gaps(made)  # all of them, or the lips would be pinched in the middle
        ajar = ((gaps - TOUCHING * self._profile) * 100).clamp_min(0).square().mean(-1)
        shut = ((APART * self._profile - gaps) * 100).clamp_min(0).square().mean(-1)
        wrong = ajar * (contact > 0) + shut * (contact < 0)
        contacts = wrong.sum() / contact.abs().sum().clamp_min(1)
        return ((position + 0.15 * opening) * known).sum() / known.sum() + 1.0 * still + CONTACT_WEIGHT * contacts


def _roughen(features: Tensor) -> Tensor:
    """Features [B, T, D] with noise and with some channels silent throughout: there are few voices to learn from."""
    noisy = features + FEATURE_NOISE * features.std() * torch.randn_like(features)
    return nn.functional.dropout1d(noisy.transpose(1, 2), CHANNEL_DROPOUT).transpose(1, 2)


def fit_generator(
    corpus: Corpus,
    model: MorphableModel,
    checkpoint: Path,
    *,
    features: int,
    steps: int,
    batch: int = 24,
    rate: float = 1e-3,
) -> GeometryGenerator:
    """Train a generator on the corpus; resumes from `checkpoint`; returns the averaged weights."""
    generator = GeometryGenerator(GeometryConfig(features=features))
    generator.start_from(model)
    run = Run(generator, checkpoint, steps=steps, learning_rate=rate, weight_decay=0.05, average_decay=0.99)
    loss_of = GeometryLoss(model)
    for step in run.steps():
        drawn = corpus.draw(batch)
        heard = _roughen(drawn["features"])
        style = generator.style(drawn["style"]) * drawn["styled"]
        made = generator(heard, style, drawn["template"])
        loss = loss_of(made, drawn["template"][:, generator.lower], drawn["beta"], drawn["known"], drawn["contact"])
        run.update(loss)
        if step % 100 == 0:
            log.info("%s step %d loss %.3f", checkpoint.stem, step, loss.item())
    return run.average.eval()


@torch.inference_mode()
def predict(
    generator: GeometryGenerator,
    model: MorphableModel,
    features: Tensor,
    alpha: Tensor,
    style_beta: Tensor | None,
) -> Tensor:
    """Offsets [T, V_low, 3] from the template for features [T, D]; the style is zero without `style_beta` [T', K]."""
    template = (model.mean + model.shape(alpha))[None]
    style = torch.zeros(1, generator.config.width)
    if style_beta is not None:
        style = generator.style((model.mean + model.expression(style_beta))[None])
    made = generator(features[None], style, template)[0]
    return made - template[0, generator.lower]

"""Estimate the lag, in frames, of the picture of each clip behind its sound.

In videos from the web sound and picture are up to three frames apart, which harms training more than a small data set
does. Two generators are trained on the teacher's features, each on half of the people. Each measures the offsets of
the other half's clips; these are removed, and the next round begins. Validation people are only measured, never
trained on.
"""

from __future__ import annotations

import csv
import logging
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track as progress
from torch import Tensor

from engine.models import int8
from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.speech import SpeechConfig, SpeechEncoder, extract
from engine.models.weights import default_path, load, load_face_model
from precompute.synchrony import MAX_LAG_FRAMES, high_pass, lag_curve, peak
from training.geometry.corpus import Corpus, Example, Item, load_examples
from training.geometry.generator import fit_generator, predict
from training.speech.teacher import load_utterance, reduce_teacher, teacher_path

log = logging.getLogger(__name__)

LOCKED = 0.35  # clips with a lower correlation of predicted and true lip motion are not trained on


def _shifted(features: Tensor, start: int, frames: int, offset_frames: float) -> Tensor:
    """Rows [frames, D] of features [T, D] for the pictures from `start` on, which lag the sound by the offset."""
    place = (torch.arange(start, start + frames) - offset_frames).clamp(0, len(features) - 1)
    low = place.floor().long()
    share = (place - low)[:, None]
    return features[low] * (1 - share) + features[(low + 1).clamp_max(len(features) - 1)] * share


def _pooled_offsets(examples: list[Example], curves: list[Tensor]) -> list[float]:
    """One lag per clip, from its curve plus those of its person and of its source, which weigh at most 4 s each."""
    frames = [float(len(example.beta)) for example in examples]
    lags = []
    for i, example in enumerate(examples):
        total = frames[i] * curves[i]
        for key in ("identity", "source"):
            others = [
                j
                for j, other in enumerate(examples)
                if j != i
                and getattr(other.clip, key) == getattr(example.clip, key)
                and other.clip.source == example.clip.source
            ]
            if others:
                pooled = torch.stack([frames[j] * curves[j] for j in others]).sum(0)
                total = total + pooled * min(1.0, 100.0 / sum(frames[j] for j in others))
        lags.append(peak(total)[0])
    return lags


def _curve(
    generator: GeometryGenerator,
    model: MorphableModel,
    example: Example,
    features: Tensor,
) -> Tensor:
    """Correlation over lag [17] of a clip's lips with a prediction from unshifted features."""
    unshifted = _shifted(features, example.start, len(example.beta), 0.0)
    predicted = predict(generator, model, unshifted, example.alpha, example.beta)
    true = torch.einsum("tk,kvc->tvc", example.beta, model.expression_basis[:, generator.lower])
    lips = torch.isin(generator.lower, torch.tensor([*LIPS_OUTER, *LIPS_INNER]))
    predicted, true = (rows[:, lips, :2].flatten(1) for rows in (predicted, true))
    return lag_curve(high_pass(predicted), high_pass(true))


def _half(example: Example) -> int:
    """The half of the people, 0 or 1, of the person of the example."""
    return zlib.crc32(example.clip.identity.encode()) % 2


@dataclass(frozen=True)
class Offset:
    """The picture lags the sound by `frames`; `match` is the correlation at that lag, of lips unseen in training."""

    frames: float
    match: float

    @property
    def locked(self) -> bool:
        return self.match >= LOCKED


@dataclass(frozen=True)
class _Estimation:
    """Rounds of training and measuring over `examples` with the teacher's features [T, D] of each."""

    examples: list[Example]
    features: list[Tensor]
    model: MorphableModel
    runs: Path
    steps: int

    def round(self, number: int, offsets: list[Offset]) -> list[Offset]:
        """The offsets after training on each half of the people and measuring the other half and the validation."""
        curves: list[list[Tensor]] = [[] for _ in self.examples]
        for half in (0, 1):
            generator = self._generator(number, half, offsets)
            for i, example in enumerate(self.examples):
                if example.clip.split == "val" or _half(example) != half:
                    curves[i].append(_curve(generator, self.model, example, self.features[i]))
        means = [torch.stack(pair).mean(0) for pair in curves]
        lags = _pooled_offsets(self.examples, means)
        zero = self._zero(lags)
        result = []
        for curve, lag in zip(means, lags, strict=True):
            result.append(_at(curve, lag, zero))
        return result

    def _generator(self, number: int, half: int, offsets: list[Offset]) -> GeometryGenerator:
        """A generator trained on one half of the people."""
        items = [
            Item(
                _shifted(features, example.start, len(example.beta), offset.frames),
                example.beta,
                torch.ones(len(example.beta)),
                torch.zeros(len(example.beta)),
                i,
            )
            for i, (example, features, offset) in enumerate(zip(self.examples, self.features, offsets, strict=True))
            if example.clip.split == "train" and _half(example) == half and offset.locked
        ]
        return fit_generator(
            Corpus(self.examples, items, self.model, seed=number),
            self.model,
            self.runs / "geometry" / f"offsets-{number}-{half}.pt",
            features=self.features[0].shape[1],
            steps=self.steps,
            batch=16,
        )

    def _zero(self, lags: list[float]) -> float:
        """The lag of a synchronous clip: the median over people, as half of the real people lead and half lag."""
        people: dict[str, list[float]] = defaultdict(list)
        for example, lag in zip(self.examples, lags, strict=True):
            if example.clip.kind == "real" and example.clip.split == "train":
                people[example.clip.identity].append(lag)
        return float(np.median([np.median(of_person) for of_person in people.values()]))


def _at(curve: Tensor, lag: float, zero: float = 0.0) -> Offset:
    """The offset of a clip with this lag, measured from `zero`, and its curve's height there."""
    place = min(max(round(lag) + MAX_LAG_FRAMES, 0), len(curve) - 1)
    return Offset(lag - zero, float(curve[place]))


def _write_offsets(path: Path, offsets: dict[str, Offset]) -> None:
    with path.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["clip", "offset_frames", "match", "locked"])
        for name, offset in offsets.items():
            table.writerow([name, f"{offset.frames:.2f}", f"{offset.match:.3f}", int(offset.locked)])


def _read_offsets(path: Path) -> dict[str, Offset]:
    with path.open(newline="") as lines:
        return {row["clip"]: Offset(float(row["offset_frames"]), float(row["match"])) for row in csv.DictReader(lines)}


def _with_new_clips(path: Path, examples: list[Example]) -> dict[str, Offset]:
    """The offsets in `path`, with those of examples that it lacks added to it."""
    known = _read_offsets(path)
    new = [example for example in examples if example.clip.name not in known]
    if not new:
        return known
    model = load_face_model()
    encoder = load(SpeechEncoder, SpeechConfig, default_path("speech")).for_cpu(int8.available())
    generator = load(GeometryGenerator, GeometryConfig, default_path("geometry"))
    curves = [_curve(generator, model, e, extract(encoder, e.pcm)) for e in progress(new, "offsets of new clips")]
    offsets = [_at(curve, lag) for curve, lag in zip(curves, _pooled_offsets(new, curves), strict=True)]
    known |= {example.clip.name: offset for example, offset in zip(new, offsets, strict=True)}
    _write_offsets(path, known)
    return _read_offsets(path)


def _with_future(features: Tensor) -> Tensor:
    """Features [T, C] joined with the features at the end of the live encoder's lookahead, [T, 2 C]."""
    ahead = (torch.arange(len(features)) + SpeechConfig.lookahead_frames).clamp_max(len(features) - 1)
    return torch.cat([features, features[ahead]], 1)


def estimate_offsets(data: Path, runs: Path, *, rounds: int = 3, steps: int = 400) -> dict[str, Offset]:
    """The offset of every clip by its name; stored in `runs/offsets.csv`; resumes where it was stopped.

    Clips that were added later are measured by the engine's networks.
    """
    final = runs / "offsets.csv"
    if final.exists():
        return _with_new_clips(final, load_examples(data, runs))
    model = load_face_model()
    examples = [e for e in load_examples(data, runs) if teacher_path(runs, e.clip.name).exists()]
    utterances = [load_utterance(runs, e.clip.name) for e in examples]
    training = [u for e, u in zip(examples, utterances, strict=True) if e.clip.split == "train"]
    target = reduce_teacher(runs, training, SpeechConfig.frame_features)
    features = [_with_future(torch.from_numpy(target(u.features))) for u in utterances]
    estimation = _Estimation(examples, features, model, runs, steps)
    offsets = [Offset(0.0, 1.0)] * len(examples)
    names = [example.clip.name for example in examples]
    for number in range(rounds):
        path = runs / "geometry" / f"offsets-{number}.csv"
        if path.exists():
            known = _read_offsets(path)
            offsets = [known[e.clip.name] for e in examples]
            continue
        previous = offsets
        offsets = estimation.round(number, previous)
        _log_round(number, previous, offsets)
        _write_offsets(path, dict(zip(names, offsets, strict=True)))
    _write_offsets(final, dict(zip(names, offsets, strict=True)))
    return _read_offsets(final)


def _log_round(number: int, previous: list[Offset], offsets: list[Offset]) -> None:
    moved = np.abs([a.frames - b.frames for a, b in zip(previous, offsets, strict=True)])
    log.info(
        "offsets, round %d: moved %.2f frames (median), %.0f %% by more than one; match %.3f, locked %.0f %%",
        number,
        np.median(moved),
        100 * (moved > 1).mean(),
        np.median([offset.match for offset in offsets]),
        100 * np.mean([offset.locked for offset in offsets]),
    )

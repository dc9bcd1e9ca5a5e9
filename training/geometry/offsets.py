"""Find how far the picture of each clip lags its sound.

Sound and picture of footage from the wild are apart by up to three frames, which hurts more than a small data set does.
Two generators are trained on the teacher's features, each on half of the people; each is asked how far the other half's
clips are out; that is removed, and so on. Validation people are only measured, never trained on.
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
from torch import Tensor

from engine.models.geometry import GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.speech import SpeechConfig
from engine.models.weights import load_face_model
from training.geometry.loss import Corpus, Example, Item, fit_generator, load_examples, predict
from training.speech.teacher import load_utterance, reduce_teacher, teacher_path

log = logging.getLogger(__name__)

MAX_OFFSET_FRAMES = 8
LOCKED = 0.35  # correlation of predicted and true lip motion below which a clip is not trained on


def shifted(features: Tensor, start: int, frames: int, offset_frames: float) -> Tensor:
    """Rows of features [T, D] that belong to the pictures start ... start + frames - 1 when these lag by the offset."""
    place = (torch.arange(start, start + frames) - offset_frames).clamp(0, len(features) - 1)
    low = place.floor().long()
    share = (place - low)[:, None]
    return features[low] * (1 - share) + features[(low + 1).clamp_max(len(features) - 1)] * share


def lag_curve(made: Tensor, true: Tensor) -> Tensor:
    """Correlation of true motion with predicted motion that is delayed by -8 ... 8 frames, [17].

    made, true: [T, ...]; all coordinates are centred over the overlap and pooled.
    """
    made, true = made.flatten(1), true.flatten(1)
    frames, curve = len(made), []
    for lag in range(-MAX_OFFSET_FRAMES, MAX_OFFSET_FRAMES + 1):
        a = true[max(lag, 0) : frames + min(lag, 0)]
        b = made[max(-lag, 0) : frames + min(-lag, 0)]
        a, b = a - a.mean(0), b - b.mean(0)
        curve.append((a * b).sum() / (a.norm() * b.norm() + 1e-9))
    return torch.stack(curve)


def peak(curve: Tensor) -> tuple[float, float]:
    """Lag in frames (a parabola through the top three) and height of the best correlation."""
    top = int(curve.argmax())
    if not 0 < top < len(curve) - 1:
        return float(top - MAX_OFFSET_FRAMES), float(curve[top])
    before, here, after = curve[top - 1 : top + 2].tolist()
    between = 0.5 * (before - after) / (before - 2 * here + after - 1e-9)
    return top - MAX_OFFSET_FRAMES + between, here


def pooled_offsets(examples: list[Example], curves: list[Tensor]) -> list[float]:
    """One lag a clip: its own curve and, worth at most four seconds, the curves of its person and of its source."""
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


def _high_pass(rows: Tensor) -> Tensor:
    """rows [T, C] less their mean over the second around: smiles and drift say nothing about timing."""
    window = min(25, len(rows) // 2 * 2 - 1)
    padded = torch.nn.functional.pad(rows.T[None], (window // 2, window // 2), mode="replicate")
    return rows - torch.nn.functional.avg_pool1d(padded, window, stride=1)[0].T


def _curve(
    generator: GeometryGenerator,
    model: MorphableModel,
    example: Example,
    features: Tensor,
) -> Tensor:
    """Correlation over lag of a clip's lips with what a generator hears in unshifted features."""
    heard = shifted(features, example.start, len(example.beta), 0.0)
    made = predict(generator, model, heard, example.alpha, example.beta)
    true = torch.einsum("tk,kvc->tvc", example.beta, model.expression_basis[:, generator.lower])
    lips = torch.isin(generator.lower, torch.tensor([*LIPS_OUTER, *LIPS_INNER]))
    made, true = (rows[:, lips, :2].flatten(1) for rows in (made, true))
    return lag_curve(_high_pass(made), _high_pass(true))


def _half(example: Example) -> int:
    """Which half of the people someone belongs to."""
    return zlib.crc32(example.clip.identity.encode()) % 2


@dataclass(frozen=True)
class Offset:
    """The picture lags the sound by `frames`; `match` is the correlation there, of lips unseen in training."""

    frames: float
    match: float

    @property
    def locked(self) -> bool:
        return self.match >= LOCKED


def _round(
    examples: list[Example],
    features: list[Tensor],
    offsets: list[Offset],
    model: MorphableModel,
    runs: Path,
    round_: int,
    steps: int,
) -> list[Offset]:
    """Train on each half of the people with the offsets so far, measure the other half and the validation people."""
    curves: list[list[Tensor]] = [[] for _ in examples]
    for half in (0, 1):
        items = [
            Item(
                shifted(f, e.start, len(e.beta), o.frames),
                e.beta,
                torch.ones(len(e.beta)),
                torch.zeros(len(e.beta)),
                i,
            )
            for i, (e, f, o) in enumerate(zip(examples, features, offsets, strict=True))
            if e.clip.split == "train" and _half(e) == half and o.locked
        ]
        corpus = Corpus(examples, items, model, seed=round_)
        checkpoint = runs / "geometry" / f"offsets-{round_}-{half}.pt"
        generator = fit_generator(
            corpus,
            model,
            checkpoint,
            features=features[0].shape[1],
            steps=steps,
            batch=16,
        )
        for i, example in enumerate(examples):
            if example.clip.split == "val" or _half(example) != half:
                curves[i].append(_curve(generator, model, example, features[i]))
    merged = [torch.stack(pair).mean(0) for pair in curves]
    lags = pooled_offsets(examples, merged)
    people: dict[str, list[float]] = defaultdict(list)
    for example, lag in zip(examples, lags, strict=True):
        if example.clip.kind == "real" and example.clip.split == "train":
            people[example.clip.identity].append(lag)
    zero = float(np.median([np.median(own) for own in people.values()]))  # half the real people lead, half lag
    result = []
    for curve, lag in zip(merged, lags, strict=True):
        at = min(max(round(lag) + MAX_OFFSET_FRAMES, 0), len(curve) - 1)
        result.append(Offset(lag - zero, float(curve[at])))
    return result


def write_offsets(path: Path, examples: list[Example], offsets: list[Offset]) -> None:
    with path.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["clip", "offset_frames", "match", "locked"])
        for example, offset in zip(examples, offsets, strict=True):
            table.writerow(
                [
                    example.clip.name,
                    f"{offset.frames:.2f}",
                    f"{offset.match:.3f}",
                    int(offset.locked),
                ]
            )


def read_offsets(path: Path) -> dict[str, Offset]:
    with path.open(newline="") as lines:
        return {row["clip"]: Offset(float(row["offset_frames"]), float(row["match"])) for row in csv.DictReader(lines)}


def _with_future(features: Tensor) -> Tensor:
    """Features [T, C] joined with those of the frames that the live encoder looks ahead, [T, 2 C]."""
    ahead = (torch.arange(len(features)) + SpeechConfig.lookahead_frames).clamp_max(len(features) - 1)
    return torch.cat([features, features[ahead]], 1)


def find_offsets(data: Path, runs: Path, *, rounds: int = 3, steps: int = 400) -> dict[str, Offset]:
    """The offset of every clip, in `runs/offsets.csv`; validation people are only measured, never trained on."""
    final = runs / "offsets.csv"
    if final.exists():
        return read_offsets(final)
    model = load_face_model()
    examples = [e for e in load_examples(data, runs) if teacher_path(runs, e.clip.name).exists()]
    target = reduce_teacher(runs, [], SpeechConfig.frame_features)
    features = [_with_future(torch.from_numpy(target(load_utterance(runs, e.clip.name).features))) for e in examples]
    offsets = [Offset(0.0, 1.0)] * len(examples)
    for round_ in range(rounds):
        path = runs / "geometry" / f"offsets-{round_}.csv"
        if path.exists():
            known = read_offsets(path)
            offsets = [known[e.clip.name] for e in examples]
            continue
        before = offsets
        offsets = _round(examples, features, before, model, runs, round_, steps)
        moved = np.abs([a.frames - b.frames for a, b in zip(before, offsets, strict=True)])
        match = np.array([offset.match for offset in offsets])
        message = "offsets, round %d: moved %.2f frames (median), %.0f %% by more than one; match %.3f, locked %.0f %%"
        locked = 100 * np.mean([offset.locked for offset in offsets])
        log.info(
            message,
            round_,
            np.median(moved),
            100 * (moved > 1).mean(),
            np.median(match),
            locked,
        )
        write_offsets(path, examples, offsets)
    write_offsets(final, examples, offsets)
    return read_offsets(final)

"""Train speech -> lower face, and find how far the picture of each clip lags its sound.

Sound and picture of footage from the wild are apart by up to three frames, which hurts more than a small data set
does. `find_offsets` trains two generators on the teacher's features, each on half of the people, asks each how far the
other half's clips are out, removes that and repeats. `train` then learns from the small encoder's features, made under
the live windows from sound that was shifted into place.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import (
    LIPS_INNER,
    LIPS_OUTER,
    MorphableModel,
    load_face_model,
    mouth_opening,
)
from engine.models.speech import FRAME_SAMPLES, SpeechConfig, SpeechEncoder, extract
from engine.weights import fingerprint, load, save
from training.data import (
    Clip,
    fit_path,
    load_fit,
    load_track,
    read_manifest,
    track_path,
)
from training.loop import Run
from training.speech import load_utterance, reduce_teacher, teacher_path

log = logging.getLogger(__name__)

MAX_OFFSET_FRAMES = 8
LOCKED = 0.35  # correlation of predicted and true lip motion below which a clip is not trained on
CROP_FRAMES = 64
STYLE_FRAMES = 40  # drawn anew each time: a style has to survive the sampling
LEAD_FRAMES, RELEASE_FRAMES = 10, 24  # silence put before and after each clip
CLOSING_FRAMES = 6  # after the last sound the mouth has this long to reach its rest
IDENTITY_FRAMES = 1000  # nobody counts for more than 40 s
GENERATED_WEIGHT = 0.6


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


def shifted(features: Tensor, start: int, frames: int, offset_frames: float) -> Tensor:
    """Rows of features [T, D] that belong to the pictures start ... start + frames - 1 when these lag by the offset."""
    place = (torch.arange(start, start + frames) - offset_frames).clamp(0, len(features) - 1)
    low = place.floor().long()
    share = (place - low)[:, None]
    return features[low] * (1 - share) + features[(low + 1).clamp_max(len(features) - 1)] * share


@dataclass(frozen=True)
class Item:
    """One stretch to learn from: features [T, D], targets beta [T, K], known [T] (0 or 1), style sources by index."""

    features: Tensor
    beta: Tensor
    known: Tensor
    example: int


class Corpus:
    """Items and how to draw crops of them; people are capped, clips weighted."""

    def __init__(
        self,
        examples: list[Example],
        items: list[Item],
        model: MorphableModel,
        seed: int,
    ) -> None:
        self._examples, self._items, self._model = examples, items, model
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

    def _style_beta(self, which: int) -> Tensor:
        """Expressions [STYLE_FRAMES, K] that show the style of the person in example `which`, often from another clip."""
        if self._rng.random() < 0.5:
            which = int(self._rng.choice(self._same[self._examples[which].clip.identity]))
        beta = self._examples[which].beta
        return beta[torch.from_numpy(self._rng.integers(0, len(beta), STYLE_FRAMES))]

    def draw(self, batch: int) -> dict[str, Tensor]:
        """features [B, T, D], beta [B, T, K], known [B, T], template [B, V, 3], style vertices [B, S, V, 3],
        styled [B, 1] (0: learn to do without)."""
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for which in self._rng.choice(len(self._items), batch, p=self._chance):
            item = self._items[which]
            first = int(self._rng.integers(0, max(1, len(item.beta) - CROP_FRAMES + 1)))
            missing = CROP_FRAMES - len(item.beta[first : first + CROP_FRAMES])
            for name in ("features", "beta", "known"):
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
        self._above, self._below = (
            [place[v] for v in (82, 13, 312)],
            [place[v] for v in (87, 14, 317)],
        )

    def offsets(self, beta: Tensor) -> Tensor:
        """True offsets of the lower vertices [..., V_low, 3]."""
        return torch.einsum("...k,kvc->...vc", beta, self._basis)

    def opening(self, vertices: Tensor) -> Tensor:
        """Height of the inner lips [...] of lower vertices [..., V_low, 3]."""
        gap = vertices[..., self._above, :] - vertices[..., self._below, :]
        return torch.linalg.vector_norm(gap, dim=-1).mean(-1)

    def __call__(self, made: Tensor, template: Tensor, beta: Tensor, known: Tensor) -> Tensor:
        """made, template: lower vertices [B, T, V_low, 3] and [B, V_low, 3]; beta [B, T, K]; known [B, T]."""
        true = template[:, None] + self.offsets(beta)
        error = (made - true) * 100
        position = (error.square() * self._weight).sum((-1, -2))
        change = (error[:, 1:] - error[:, :-1]).square() * self._weight
        both = known[:, 1:] * known[:, :-1]
        wanted = self.opening(true)
        opening = ((self.opening(made) - wanted) * 100).square()
        opening = opening * (1 + 2 * (wanted < 0.02))  # a mouth that does not close is what viewers notice
        still = (change.sum((-1, -2)) * both).sum() / both.sum()
        return ((position + 0.15 * opening) * known).sum() / known.sum() + 1.0 * still


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
    run = Run(generator, checkpoint, steps=steps, learning_rate=rate, weight_decay=0.05)
    loss_of = GeometryLoss(model)
    for step in run.steps():
        drawn = corpus.draw(batch)
        style = generator.style(drawn["style"]) * drawn["styled"]
        made = generator(drawn["features"], style, drawn["template"])
        loss = loss_of(made, drawn["template"][:, generator.lower], drawn["beta"], drawn["known"])
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


def find_offsets(data: Path, runs: Path, *, rounds: int = 3, steps: int = 400) -> dict[str, Offset]:
    """The offset of every clip, in `runs/offsets.csv`; validation people are only measured, never trained on."""
    final = runs / "offsets.csv"
    if final.exists():
        return read_offsets(final)
    model = load_face_model()
    examples = [e for e in load_examples(data, runs) if teacher_path(runs, e.clip.name).exists()]
    target = reduce_teacher(runs, [], SpeechConfig.features)
    features = [torch.from_numpy(target(load_utterance(runs, e.clip.name).features)) for e in examples]
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


def _room_tone(pcm: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Silence as this microphone has it: noise at the level of the quietest tenth of its frames, or digital zero."""
    whole = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    level = float(np.quantile(np.sqrt((whole**2).mean(1)), 0.1)) if len(whole) else 0.0
    level = min(level, 0.01) * rng.choice([0.0, 0.3, 1.0])
    return (level * rng.standard_normal(frames * FRAME_SAMPLES)).astype(np.float32)


def aligned_sound(example: Example, offset_frames: float) -> np.ndarray:
    """The sound [T * 640] of the fitted frames, moved to where the picture is."""
    begin = round((example.start - offset_frames) * FRAME_SAMPLES)
    end = begin + len(example.beta) * FRAME_SAMPLES
    part = example.pcm[max(begin, 0) : max(end, 0)]
    before = min(max(-begin, 0), end - begin)
    return np.pad(part, (before, end - begin - before - len(part)))


def rest_pose(beta: Tensor, opening: Tensor) -> Tensor:
    """The person's closed mouth: the median expression [K] of the tenth of the frames that are the most closed."""
    closed = opening <= torch.quantile(opening, 0.1)
    return beta[closed].median(0).values


def hear(encoder: SpeechEncoder, example: Example, offset_frames: float, model: MorphableModel, which: int) -> Item:
    """A clip as the live encoder hears it, with silence and the closed mouth around it, at a random place in the step."""
    rng = np.random.default_rng(which)
    spoken = aligned_sound(example, offset_frames)
    lead = LEAD_FRAMES + int(rng.integers(0, encoder.config.step_frames))
    release = RELEASE_FRAMES if len(example.beta) > 50 or rng.random() < 0.3 else 0
    tone = _room_tone(example.pcm, lead + release, rng)
    pcm = np.concatenate([tone[: lead * FRAME_SAMPLES], spoken, tone[lead * FRAME_SAMPLES :]])
    level = 10 ** (rng.uniform(-30, -16) / 20) / (np.sqrt((spoken**2).mean()) + 1e-4)
    features = extract(encoder, (pcm * level).clip(-1, 1))
    rest = rest_pose(example.beta, mouth_opening(model.mean + model.shape(example.alpha) + model.expression(example.beta)))
    ramp = torch.linspace(0, 1, CLOSING_FRAMES + 1)[1:, None]
    closing = torch.cat([example.beta[-1] + ramp * (rest - example.beta[-1]), rest.expand(release, -1)])[:release]
    beta = torch.cat([rest.expand(lead, -1), example.beta, closing])
    known = torch.ones(len(beta))
    known[lead - 3 : lead] = 0  # a mouth opens ahead of the sound, by how much is not known here
    return Item(features, beta, known, which)


def heard_items(
    runs: Path, speech: Path, examples: list[Example], offsets: dict[str, Offset], model: MorphableModel
) -> list[Item]:
    """What the encoder in `speech` hears in all training clips that lock; kept in `runs/heard`, resumable."""
    folder = runs / "heard" / fingerprint(speech)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load(SpeechEncoder, SpeechConfig, speech)
    items = []
    for which, example in enumerate(progress(examples, "hearing")):
        offset = offsets.get(example.clip.name)
        if example.clip.split != "train" or offset is None or not offset.locked:
            continue
        path = folder / f"{example.clip.name}.safetensors"
        if not path.exists():
            item = hear(encoder, example, offset.frames, model, which)
            save_file({name: getattr(item, name) for name in ("features", "beta", "known")}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        items.append(Item(**load_file(path), example=which))
    return items


def train(data: Path, runs: Path, *, steps: int = 1500, batch: int = 24, seed: int = 0) -> Path:
    """Train the generator on `runs/speech.safetensors`' features; returns `runs/geometry.safetensors`.

    Finds the offsets first where `runs/offsets.csv` is missing. Every part resumes where it was stopped.
    """
    torch.manual_seed(seed)
    offsets = find_offsets(data, runs)
    model, speech = load_face_model(), runs / "speech.safetensors"
    examples = load_examples(data, runs)
    items = heard_items(runs, speech, examples, offsets, model)
    corpus = Corpus(examples, items, model, seed)
    checkpoint = runs / "geometry" / f"train-{fingerprint(speech)}.pt"
    generator = fit_generator(corpus, model, checkpoint, features=SpeechConfig.features, steps=steps, batch=batch)
    frames = sum(len(item.beta) for item in items)
    facts = {"speech": fingerprint(speech), "clips": str(len(items)), "frames": str(frames), "steps": str(steps)}
    path = runs / "geometry.safetensors"
    save(generator, path, facts=facts)
    log.info("geometry: %d clips, %d frames -> %s", len(items), frames, path)
    return path

"""Train the geometry generator (§3.1), speech -> lower face, on features of the speech encoder under live windows.

The sound of each clip is first moved to its picture (see `training.geometry.offsets`). Silence with a closed mouth is
put around it, so that the lips close and hold still in silence.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from rich.progress import track as progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models import int8
from engine.models.morphable import MorphableModel, mouth_opening
from engine.models.speech import FRAME_SAMPLES, SpeechConfig, SpeechEncoder, extract
from engine.models.weights import fingerprint, load, load_face_model, save
from training.geometry.corpus import Corpus, Example, Item, load_examples
from training.geometry.generator import fit_generator
from training.geometry.offsets import Offset, estimate_offsets
from training.speech.phonemes import BILABIALS, OPEN_VOWELS, load_spoken, speak_all

log = logging.getLogger(__name__)

LEAD_FRAMES, RELEASE_FRAMES = 10, 24  # silence put before and after each clip
CLOSING_FRAMES = 6  # time for the mouth to reach its rest after the last sound


def _room_tone(pcm: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Silence: noise at the level of the quietest tenth of the frames, weaker noise, or digital zero."""
    whole = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    level = float(np.quantile(np.sqrt((whole**2).mean(1)), 0.1)) if len(whole) else 0.0
    level = min(level, 0.01) * rng.choice([0.0, 0.3, 1.0])
    return (level * rng.standard_normal(frames * FRAME_SAMPLES)).astype(np.float32)


def aligned_sound(example: Example, offset_frames: float) -> np.ndarray:
    """The sound [T * 640] of the fitted frames when the picture lags the sound by `offset_frames`."""
    begin = round((example.start - offset_frames) * FRAME_SAMPLES)
    end = begin + len(example.beta) * FRAME_SAMPLES
    part = example.pcm[max(begin, 0) : max(end, 0)]
    before = min(max(-begin, 0), end - begin)
    return np.pad(part, (before, end - begin - before - len(part)))


def fast_encoder(speech: Path) -> SpeechEncoder:
    """The encoder as the CPU runs it: in int8 where PyTorch has it, in half the time."""
    return load(SpeechEncoder, SpeechConfig, speech).for_cpu(int8.available())


def rest_pose(beta: Tensor, opening: Tensor) -> Tensor:
    """The closed mouth: the median expression [K] of beta [T, K] over the tenth with the least opening [T]."""
    closed = opening <= torch.quantile(opening, 0.1)
    return beta[closed].median(0).values


def _item(encoder: SpeechEncoder, example: Example, offset_frames: float, model: MorphableModel, which: int) -> Item:
    """An item of a clip with silence around it. The speech begins anywhere in a step of the encoder."""
    rng = np.random.default_rng(which)
    speech, beta = aligned_sound(example, offset_frames), example.beta
    lead = LEAD_FRAMES + int(rng.integers(0, encoder.config.step_frames))
    release = RELEASE_FRAMES if len(beta) > 50 or rng.random() < 0.3 else 0
    tone = _room_tone(example.pcm, lead + release, rng)
    pcm = np.concatenate([tone[: lead * FRAME_SAMPLES], speech, tone[lead * FRAME_SAMPLES :]])
    level = 10 ** (rng.uniform(-30, -16) / 20) / (np.sqrt((speech**2).mean()) + 1e-4)
    features = extract(encoder, (pcm * level).clip(-1, 1))
    vertices = model.mean + model.shape(example.alpha) + model.expression(beta)
    rest = rest_pose(beta, mouth_opening(vertices))
    ramp = torch.linspace(0, 1, CLOSING_FRAMES + 1)[1:, None]
    closing = torch.cat([beta[-1] + ramp * (rest - beta[-1]), rest.expand(release, -1)])[:release]
    targets = torch.cat([rest.expand(lead, -1), beta, closing])
    known = torch.ones(len(targets))
    known[lead - 3 : lead] = 0  # a mouth opens ahead of the sound, by an unknown time
    return Item(features, targets, known, torch.zeros(len(targets)), which)


def clip_items(
    runs: Path, speech: Path, examples: list[Example], offsets: dict[str, Offset], model: MorphableModel
) -> list[Item]:
    """The items of all training clips whose offset is locked, with features of the encoder in `speech`.

    Kept in `runs/heard`; resumes where it was stopped.
    """
    folder = runs / "heard" / fingerprint(speech)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = fast_encoder(speech)
    items = []
    for which, example in enumerate(progress(examples, "features")):
        offset = offsets.get(example.clip.name)
        if example.clip.split != "train" or offset is None or not offset.locked:
            continue
        offset_frames = round(offset.frames, 1)
        path = folder / f"{example.clip.name}_{offset_frames}.safetensors"
        if not path.exists():
            item = _item(encoder, example, offset_frames, model, which)
            rows = {name: getattr(item, name) for name in ("features", "beta", "known")}
            save_file(rows, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        rows = load_file(path)
        items.append(Item(**rows, contact=torch.zeros(len(rows["known"])), example=which))
    return items


def _sentence_items(runs: Path, speech: Path, components: int) -> list[Item]:
    """The training sentences of `training.speech.phonemes` as items; kept in `runs/heard`."""
    folder = runs / "heard" / fingerprint(speech)
    encoder = fast_encoder(speech)
    items = []
    for spoken in progress(load_spoken(runs, "train"), "features of sentences"):
        path = folder / f"{spoken.name}.safetensors"
        if not path.exists():
            save_file({"features": extract(encoder, spoken.pcm)}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        features = load_file(path)["features"]
        contact = torch.zeros(len(features))
        for symbols, touch in ((OPEN_VOWELS, -1), (BILABIALS, 1)):
            middles = [(start + end) / 2 for symbol, start, end in spoken.phonemes if symbol[:1] in symbols]
            contact[[min(int(25 * middle), len(contact) - 1) for middle in middles]] = touch
        items.append(Item(features, torch.zeros(len(features), components), torch.zeros(len(features)), contact, 0))
    return items


def train(data: Path, runs: Path, *, steps: int = 1000, batch: int = 28, share: float = 1.0, seed: int = 0) -> Path:
    """Train the generator on `runs/speech.safetensors`' features; returns `runs/geometry.safetensors`.

    Estimates the offsets first where `runs/offsets.csv` is missing. Every part resumes where it was stopped. With a
    `share` below 1 only that share of the people is used (for a learning curve), and the file is named after it.
    """
    torch.manual_seed(seed)
    offsets = estimate_offsets(data, runs)
    model, speech = load_face_model(), runs / "speech.safetensors"
    examples = load_examples(data, runs)
    people = sorted({example.clip.identity for example in examples}, key=_shuffled)
    chosen = set(people[: round(share * len(people))])
    items = clip_items(runs, speech, examples, offsets, model)
    items = [item for item in items if examples[item.example].clip.identity in chosen]
    speak_all(runs)
    corpus = Corpus(examples, items, model, seed, _sentence_items(runs, speech, items[0].beta.shape[1]))
    suffix = "" if share == 1 else f"-{round(100 * share)}"
    checkpoint = runs / "geometry" / f"train-{fingerprint(speech)}{suffix}.pt"
    features = items[0].features.shape[1]
    generator = fit_generator(corpus, model, checkpoint, features=features, steps=steps, batch=batch)
    frames = sum(len(item.beta) for item in items)
    facts = {"speech": fingerprint(speech), "clips": str(len(items)), "frames": str(frames), "steps": str(steps)}
    path = runs / f"geometry{suffix}.safetensors"
    save(generator, path, facts=facts)
    log.info("geometry: %d clips, %d frames -> %s", len(items), frames, path)
    return path


def _shuffled(identity: str) -> str:
    """A key that sorts people in a random order, the same in every run."""
    return hashlib.sha256(identity.encode()).hexdigest()

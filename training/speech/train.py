"""Train the speech encoder under the live windows.

It learns the features of a teacher (`training.speech.teacher`), the teacher's units where frames are masked (Hsu et al.
2021), and the phonemes of synthesised sentences (`training.speech.phonemes`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import torch
from torch import Tensor, nn

from engine.errors import MediaError
from engine.models.speech import (
    FRAME_SAMPLES,
    RATE_HZ,
    SpeechConfig,
    SpeechEncoder,
    extract,
)
from engine.models.weights import save
from training.data.clips import read_manifest
from training.optimisation import Run
from training.speech.phonemes import Spoken, load_spoken, speak_all
from training.speech.teacher import (
    Target,
    Utterance,
    known_sounds,
    load_utterance,
    reduce_teacher,
    teach,
    teacher_path,
    teacher_units,
)

log = logging.getLogger(__name__)

TEACHER_AXES = 128
UNIT_WEIGHT = 0.15  # cross entropies are larger than distances
PHONEMES = 48  # the most frequent ones of the sentences whose phonemes are known
PHONEME_WEIGHT = 0.3
SPOKEN_SHARE = 0.3  # of what is drawn are such sentences
UNKNOWN = -100  # what cross entropy leaves out
UNHEARD_FRAMES = 5  # at a window's start, without context


def colour(pcm: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Another microphone and room: level, spectral tilt, echoes, codec, white noise, another voice; pcm [N] float32."""
    level = np.sqrt((pcm**2).mean()) + 1e-5
    if rng.random() < 0.4:  # one-zero filter: darker or brighter
        pcm = pcm + rng.uniform(-0.7, 0.7) * np.concatenate([pcm[:1] * 0, pcm[:-1]])
    if rng.random() < 0.3:
        pcm = room(pcm, rng)
    if rng.random() < 0.2:
        pcm = codec(pcm, rng)
    if rng.random() < 0.6:
        noise = rng.standard_normal(len(pcm)).astype(np.float32)
        pcm = pcm + noise * level * 10 ** (rng.uniform(-60, -10) / 20)
    if rng.random() < 0.15:
        pcm = pcm + other * level / (np.sqrt((other**2).mean()) + 1e-5) * 10 ** (rng.uniform(-40, -12) / 20)
    gain = 10 ** (rng.uniform(-36, -12) / 20) / (np.sqrt((pcm**2).mean()) + 10 ** (-46 / 20))
    return (pcm * gain).clip(-1, 1).astype(np.float32)


def stretch(pcm: np.ndarray, speed: float, samples: int) -> np.ndarray:
    """The first `samples` of pcm [N] float32 played `speed` times as fast: higher or lower, like another person."""
    place = np.arange(samples, dtype=np.float32) * speed
    return np.interp(place, np.arange(len(pcm), dtype=np.float32), pcm).astype(np.float32)


def codec(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A telephone or a bad link: mu-law of 5-8 bits (G.711 has 8), or nothing above 3.4 kHz, pcm [N] float32."""
    if rng.random() < 0.5:
        steps = 2 ** int(rng.integers(4, 8))
        peak = np.abs(pcm).max() + 1e-5
        coded = np.sign(pcm) * np.log1p(255 * np.abs(pcm) / peak) / np.log(256)
        decoded: np.ndarray = (
            np.sign(coded) * peak * np.expm1(np.abs(np.round(coded * steps) / steps) * np.log(256)) / 255
        )
        return decoded.astype(np.float32)
    spectrum = np.fft.rfft(pcm)
    spectrum[int(len(spectrum) * rng.uniform(3.4, 6.0) / 8) :] = 0
    return np.fft.irfft(spectrum, len(pcm)).astype(np.float32)


def room(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small room: exponentially decaying noise (100-400 ms to -60 dB) behind the direct sound, pcm [N] float32."""
    samples = int(rng.uniform(0.1, 0.4) * RATE_HZ)
    tail = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail *= rng.uniform(0.1, 0.6) / np.linalg.norm(tail)
    return pcm + scipy.signal.fftconvolve(pcm, tail)[: len(pcm)].astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """windows [B, N], targets [B, F, D] and weights [B, F] of all F window frames, zero where nothing is known; units
    [B, F], the nearest of the teacher's k-means; phonemes [B, F] by number, or UNKNOWN; masked [B, F] bool."""

    windows: Tensor
    targets: Tensor
    weights: Tensor
    units: Tensor
    phonemes: Tensor
    masked: Tensor


class Windows:
    """Random windows of random utterances with their targets, as a stream would see them (silence before the start)."""

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
        self._phonemes = [np.array([number.get(s, UNKNOWN) for s in u.said[: len(u.features)]]) for u in utterances]
        self._centres = units
        frames = np.array([len(rows) for rows in self._targets], np.float64)
        spoken = np.array([any(u.said) for u in utterances])
        for kind, share in ((spoken, SPOKEN_SHARE), (~spoken, 1 - SPOKEN_SHARE)):
            frames[kind] *= share / max(1.0, frames[kind].sum())
        self._chance = frames / frames.sum()
        self._config = config
        self._rng = np.random.default_rng(seed)

    def _window(self, which: int, first: int, frames: int) -> np.ndarray:
        """PCM [N] of the frames from `first` on, which may lie before the start or past the end."""
        begin, end = first * FRAME_SAMPLES, (first + frames) * FRAME_SAMPLES
        part = self._pcm[which][max(begin, 0) : max(end, 0)].astype(np.float32) / 32768
        return np.pad(part, (max(-begin, 0), frames * FRAME_SAMPLES - max(-begin, 0) - len(part)))

    def _spans(self) -> np.ndarray:
        """Which frames [F] of a window are masked: in half of the windows two or three spans of 200-400 ms."""
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
            heard = stretch(self._window(which, first, frames + 6), speed, frames * FRAME_SAMPLES)
            other = self._window(int(self._rng.integers(len(self._pcm))), 0, frames)
            rows["windows"].append(colour(heard, self._rng, other))
            # Frame f's centre, at f + 1/2 frames, was spoken at (f + 1/2) * speed after the window's start.
            place = first + (np.arange(frames) + 0.5) * speed - 0.5
            low = np.floor(place).astype(int)
            share = (place - low)[:, None].astype(np.float32)
            index = low.clip(0, len(truth) - 2)
            known = (low >= 0) & (low < len(truth) - 1)
            said = self._phonemes[which][np.rint(place).astype(int).clip(0, len(truth) - 1)]
            target = (1 - share) * truth[index] + share * truth[index + 1]
            distance = (self._centres**2).sum(1) - 2 * target @ self._centres.T
            rows["targets"].append(target)
            rows["weights"].append(weight * known)
            rows["units"].append(distance.argmin(1))
            rows["phonemes"].append(np.where(known & (weight > 0), said, UNKNOWN))
            rows["masked"].append(self._spans())
        return Batch(**{name: torch.from_numpy(np.stack(parts)) for name, parts in rows.items()})


class Student(nn.Module):
    """The encoder and, for training only, the heads that name the units of masked frames and phonemes."""

    def __init__(self, config: SpeechConfig, units: int, phonemes: int) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.name_units = nn.Linear(self.encoder.project.in_features, units)
        self.name_phonemes = nn.Linear(config.frame_features, phonemes)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error and cosine distance to the teacher, cross entropy of the units, heard or masked, and of the
        phonemes where they are known. The features beyond the teacher's axes are there for these."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.encoder.tokens(batch.windows, batch.masked)
            features = self.encoder.project(tokens)
            named, said = self.name_units(tokens).float(), self.name_phonemes(features).float()
        made = features[..., : batch.targets.shape[-1]].float()
        error = (made - batch.targets).square().mean(-1)
        error = error + 1 - nn.functional.cosine_similarity(made, batch.targets, dim=-1)
        weight = batch.weights * ~batch.masked
        units = nn.functional.cross_entropy(named.transpose(1, 2), batch.units, reduction="none")
        share = batch.weights * torch.where(batch.masked, 1.0, 0.3)
        distilled, predicted = (error * weight).sum() / weight.sum(), (units * share).sum() / share.sum()
        phonemes = batch.phonemes.masked_fill(batch.masked, UNKNOWN)
        spelled = nn.functional.cross_entropy(said.transpose(1, 2), phonemes, ignore_index=UNKNOWN, reduction="sum")
        spelled = spelled / (phonemes != UNKNOWN).sum().clamp_min(1)
        return distilled + UNIT_WEIGHT * predicted + PHONEME_WEIGHT * spelled


@torch.inference_mode()
def agreement(encoder: SpeechEncoder, utterances: list[Utterance], target: Target) -> float:
    """Share of the teacher's variance that the student explains on whole utterances, over streamed windows."""
    error = total = 0.0
    for utterance in utterances:
        truth = target(utterance.features)
        made = extract(encoder, utterance.pcm.astype(np.float32) / 32768)[: len(truth), : truth.shape[1]].numpy()
        error += float(((made - truth[: len(made)]) ** 2).sum())
        total += float((truth**2).sum())
    return 1 - error / total


@torch.inference_mode()
def spelling(student: Student, sentences: list[Spoken], phonemes: list[str]) -> float:
    """Share of the frames of `sentences` whose phoneme, if it is one of `phonemes`, the student names."""
    right, total, width = 0, 0, student.encoder.config.frame_features
    for spoken in sentences:
        features = extract(student.encoder, spoken.pcm)[:, :width]
        named = student.name_phonemes(features).argmax(-1).tolist()
        pairs = [(phonemes[i], said) for i, said in zip(named, spoken.said(), strict=True) if said in phonemes]
        right, total = right + sum(a == b for a, b in pairs), total + len(pairs)
    return right / max(1, total)


def known_phonemes(runs: Path, sentences: Iterable[list[str]]) -> list[str]:
    """The most frequent ones of what is said in the sentences. Kept in `runs`: a resumed run numbers them alike."""
    path = runs / "teacher" / "phonemes.json"
    if not path.exists():
        counted = Counter(symbol for said in sentences for symbol in said if symbol)
        path.write_text(json.dumps([symbol for symbol, _ in counted.most_common(PHONEMES)]))
    found: list[str] = json.loads(path.read_text())
    return found


def adopt(checkpoint: str, runs: Path) -> Path:
    """Take a public HuBERT as the encoder, untouched; returns its weights file. Raises MediaError where it is not."""
    try:
        encoder = SpeechEncoder.of_checkpoint(checkpoint)
    except OSError as error:
        raise MediaError(f"{checkpoint}: no HuBERT by that name or in that folder ({error})") from error
    path = runs / "speech.safetensors"
    save(encoder, path, facts={"checkpoint": checkpoint})
    return path


def distil(
    data: Path,
    runs: Path,
    *,
    teacher: Path,
    steps: int = 3900,
    batch: int = 24,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Path:
    """Train the speech encoder on the teacher's features of everything heard in `data`; returns its weights file.

    Resumes from `runs/speech.pt`. Validation sound is never trained on.
    """
    torch.manual_seed(seed)
    speak_all(runs)  # Kokoro's sentences, where they are wanted, are made by `training speak`
    teach(data, runs, teacher=teacher)
    held_out = {clip.name for clip in read_manifest(data) if clip.split == "val"}
    sentences = {spoken.name: spoken.said() for spoken in load_spoken(runs, "train")}
    names = [name for name, _ in known_sounds(data, runs) if teacher_path(runs, name).exists()]
    utterances = [load_utterance(runs, name, sentences.get(name)) for name in names]
    training = [u for u in utterances if u.name not in held_out and len(u.features) > 20]
    validation = [u for u in utterances if u.name in held_out]
    config = SpeechConfig()
    target = reduce_teacher(runs, [u for u in training if u.name not in sentences], TEACHER_AXES)
    units = teacher_units(runs, training, target)
    phonemes = known_phonemes(runs, sentences.values())
    student = Student(config, len(units), PHONEMES)
    run = Run(student, runs / "speech.pt", steps=steps, learning_rate=learning_rate)
    # A resumed run goes on with other windows.
    windows = Windows(training, target, units, phonemes, config, seed + run.step)
    for step in run.steps():
        loss = run.module.loss(windows.draw(batch))
        run.update(loss)
        if step % 50 == 0:
            log.info("speech step %d loss %.4f", step, loss.item())
        if step % 300 == 299:
            explained = agreement(run.average.encoder.eval(), validation[:12], target)
            named = spelling(run.average, load_spoken(runs, "test")[:12], phonemes)
            log.info("speech step %d explains %.3f of the teacher, names %.3f of the phonemes", step, explained, named)
    encoder = run.average.encoder.eval()
    explained = agreement(encoder, validation, target)
    named = spelling(run.average, load_spoken(runs, "test"), phonemes)
    path = runs / "speech.safetensors"
    facts = {
        "teacher": teacher.name,
        "explained_variance_val": f"{explained:.3f}",
        "phonemes_named_test": f"{named:.3f}",
        "steps": str(run.step),
    }
    save(encoder, path, facts=facts)
    log.info("speech explains %.3f of the teacher on held-out people -> %s", explained, path)
    return path

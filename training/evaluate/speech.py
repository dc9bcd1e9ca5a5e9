"""Figures of the speech encoder by latency: the same weights under windows of other steps and lookaheads.

- latency: the sound that the first frame of a step waits for, step + lookahead.
- teacher: share of the teacher's variance that the features explain, people of the split `val`.
- phonemes: share of the frames of Kokoro's test sentences (voices and languages outside the training) whose phoneme
  the student's phoneme head predicts.
- lips: correlation of the mouth's opening with a ridge regression on the features of NEAR frames on each side, fitted
  to the other people of the split; mean over clips of at least two seconds.
- cost: milliseconds of CPU time for a second of speech, one window at a time, as live.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track as progress
from torch import Tensor

from engine.models.speech import RATE_HZ, SpeechConfig, SpeechEncoder, extract
from engine.models.weights import load_face_model
from training.data.clips import read_all
from training.geometry.corpus import Example, load_examples
from training.geometry.loss import GeometryLoss
from training.geometry.offsets import estimate_offsets
from training.geometry.train import aligned_sound
from training.speech.phonemes import load_spoken
from training.speech.student import Student, explained_variance, phoneme_accuracy
from training.speech.teacher import UNITS, load_utterance, reduce_teacher, teacher_path
from training.speech.train import PHONEMES, TEACHER_AXES, known_phonemes

log = logging.getLogger(__name__)

STEPS, LOOKAHEADS = (2, 3, 4), (1, 2, 3, 4)
MIN_FRAMES = 50
NEAR = 2
RIDGE = 300.0  # of features of about unit size, on some thousand frames
TIMED_S = 4
CLIPS, SENTENCE_EVERY = 12, 3  # enough to distinguish the configurations


def evaluate(data: Path, runs: Path, out: Path) -> dict[str, Any]:
    """The table of the module's docstring for the run in `runs/speech.pt`; writes `out`/speech.json."""
    student = Student(SpeechConfig(), UNITS, PHONEMES)
    student.load_state_dict(torch.load(runs / "speech.pt", weights_only=True)["average"])
    student.eval().requires_grad_(False)
    target = reduce_teacher(runs, [], TEACHER_AXES)
    named = known_phonemes(runs, [])
    clips = [clip.name for clip in read_all(data) if clip.split == "val"]
    utterances = [load_utterance(runs, name) for name in clips if teacher_path(runs, name).exists()][:CLIPS]
    sentences = load_spoken(runs, "test")[::SENTENCE_EVERY]
    offsets = estimate_offsets(data, runs)
    examples = [e for e in load_examples(data, runs) if e.clip.split == "val" and len(e.beta) >= MIN_FRAMES]
    sounds = [(e, aligned_sound(e, offsets[e.clip.name].frames)) for e in examples]
    table = []
    for config in progress(list(_configs()), "windows"):
        variant = copy.copy(student)
        variant.encoder = copy.copy(student.encoder)
        variant.encoder.config = config
        table.append(
            {
                "step": config.step_frames,
                "lookahead": config.lookahead_frames,
                "latency_ms": config.algorithmic_latency_ms,
                "teacher": explained_variance(variant.encoder, utterances, target),
                "phonemes": phoneme_accuracy(variant, sentences, named) if sentences else None,
                "lips": _lips(variant.encoder, sounds),
                "cost_ms": _cost_ms(variant.encoder, sounds[0][1]),
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    report = {"windows": table}
    (out / "speech.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _configs() -> Iterator[SpeechConfig]:
    for step in STEPS:
        for lookahead in LOOKAHEADS:
            yield replace(SpeechConfig(), step_frames=step, lookahead_frames=lookahead)


def _lips(encoder: SpeechEncoder, sounds: list[tuple[Example, np.ndarray]]) -> float:
    """Mean correlation of mouth openings with a regression fitted without the person of the clip."""
    model = load_face_model()
    measure = GeometryLoss(model)
    rows, openings = [], []
    for example, sound in sounds:
        features = extract(encoder, sound)
        padded = torch.cat([features[:1].expand(NEAR, -1), features, features[-1:].expand(NEAR, -1)])
        rows.append(torch.cat([padded[i : i + len(features)] for i in range(2 * NEAR + 1)], 1).double())
        lower = (model.mean + model.shape(example.alpha))[model.lower]
        opening = measure.opening(lower + measure.offsets(example.beta)).double()
        openings.append((opening - opening.mean()) / opening.std())
    people = [example.clip.identity for example, _ in sounds]
    return float(np.mean([_correlation_left_out(rows, openings, people, i) for i in range(len(rows))]))


def _correlation_left_out(rows: list[Tensor], openings: list[Tensor], people: list[str], which: int) -> float:
    others = [i for i, person in enumerate(people) if person != people[which]]
    x, y = torch.cat([rows[i] for i in others]), torch.cat([openings[i] for i in others])
    mean = x.mean(0)
    x = x - mean
    weight = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    predicted = (rows[which] - mean) @ weight
    return float(torch.corrcoef(torch.stack([predicted, openings[which]]))[0, 1])


def _cost_ms(encoder: SpeechEncoder, sound: np.ndarray) -> float:
    """CPU milliseconds for a second of speech, the median of three measurements."""
    times = []
    for _ in range(3):
        began = time.process_time()
        extract(encoder, sound[: TIMED_S * RATE_HZ], batch_windows=1)
        times.append(time.process_time() - began)
    return 1_000 * float(np.median(times)) / TIMED_S

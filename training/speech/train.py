"""Train the speech encoder under the live windows.

It learns the features of a teacher (`training.speech.teacher`), the teacher's units where frames are masked (Hsu et al.
2021), and the phonemes of synthesised sentences (`training.speech.phonemes`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.errors import MediaError
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.models.weights import save
from training.data.clips import read_all
from training.optimisation import Optimisation
from training.speech.phonemes import load_spoken, speak_all
from training.speech.student import Student, explained_variance, phoneme_accuracy
from training.speech.teacher import (
    known_sounds,
    load_utterance,
    reduce_teacher,
    teach,
    teacher_path,
    teacher_units,
)
from training.speech.windows import Windows

log = logging.getLogger(__name__)

TEACHER_AXES = 128
PHONEMES = 48  # the most frequent ones of the sentences with known phonemes


def known_phonemes(runs: Path, sentences: Iterable[list[str]]) -> list[str]:
    """The PHONEMES most frequent phonemes of sentences, each a list of phonemes by frame.

    Kept in `runs`, so that a resumed run numbers them in the same way.
    """
    path = runs / "teacher" / "phonemes.json"
    if not path.exists():
        counted = Counter(symbol for sentence in sentences for symbol in sentence if symbol)
        path.write_text(json.dumps([symbol for symbol, _ in counted.most_common(PHONEMES)]))
    phonemes: list[str] = json.loads(path.read_text())
    return phonemes


def adopt(checkpoint: str, runs: Path) -> Path:
    """Take a public HuBERT as the encoder, unchanged; returns its weights file. Raises MediaError without one."""
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
    """Train the speech encoder on the teacher's features of all sounds of `data`; returns its weights file.

    Resumes from `runs/speech.pt`. Validation sound is never trained on.
    """
    torch.manual_seed(seed)
    speak_all(runs)  # those of eSpeak; `training speak` makes Kokoro's, which are optional
    teach(data, runs, teacher=teacher)
    held_out = {clip.name for clip in read_all(data) if clip.split == "val"}
    sentences = {spoken.name: spoken.frame_phonemes() for spoken in load_spoken(runs, "train")}
    names = [name for name, _ in known_sounds(data, runs) if teacher_path(runs, name).exists()]
    utterances = [load_utterance(runs, name, sentences.get(name)) for name in names]
    training = [u for u in utterances if u.name not in held_out and len(u.features) > 20]
    validation = [u for u in utterances if u.name in held_out]
    config = SpeechConfig()
    target = reduce_teacher(runs, [u for u in training if u.name not in sentences], TEACHER_AXES)
    units = teacher_units(runs, training, target)
    phonemes = known_phonemes(runs, sentences.values())
    student = Student(config, len(units), PHONEMES)
    optimisation = Optimisation(student, runs / "speech.pt", steps=steps, learning_rate=learning_rate)
    # A resumed run goes on with other windows.
    windows = Windows(training, target, units, phonemes, config, seed + optimisation.step)
    for step in optimisation.steps():
        loss = optimisation.module.loss(windows.draw(batch))
        optimisation.update(loss)
        if step % 50 == 0:
            log.info("speech step %d loss %.4f", step, loss.item())
        if step % 300 == 299:
            explained = explained_variance(optimisation.average.encoder.eval(), validation[:12], target)
            named = phoneme_accuracy(optimisation.average, load_spoken(runs, "test")[:12], phonemes)
            log.info("speech step %d explains %.3f of the teacher, names %.3f of the phonemes", step, explained, named)
    encoder = optimisation.average.encoder.eval()
    explained = explained_variance(encoder, validation, target)
    named = phoneme_accuracy(optimisation.average, load_spoken(runs, "test"), phonemes)
    path = runs / "speech.safetensors"
    facts = {
        "teacher": teacher.name,
        "explained_variance_val": f"{explained:.3f}",
        "phonemes_named_test": f"{named:.3f}",
        "steps": str(optimisation.step),
    }
    save(encoder, path, facts=facts)
    log.info("speech explains %.3f of the teacher on held-out people -> %s", explained, path)
    return path

"""The speech encoder in training, and its figures on held-out sound."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.speech import SpeechConfig, SpeechEncoder, extract
from training.speech.phonemes import Spoken
from training.speech.teacher import Target, Utterance
from training.speech.windows import UNKNOWN, Batch

UNIT_WEIGHT = 0.15  # cross entropies are larger than distances
PHONEME_WEIGHT = 0.3


class Student(nn.Module):
    """The encoder and, for training only, the heads that name units and phonemes."""

    def __init__(self, config: SpeechConfig, units: int, phonemes: int) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.name_units = nn.Linear(self.encoder.project.in_features, units)
        self.name_phonemes = nn.Linear(config.frame_features, phonemes)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error and cosine distance to the teacher, plus the cross entropies of the units, masked or not, and
        of the phonemes where they are known. The teacher constrains only the first features, one for each axis."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.encoder.tokens(batch.windows, batch.masked)
            features = self.encoder.project(tokens)
            unit_scores, phoneme_scores = self.name_units(tokens).float(), self.name_phonemes(features).float()
        distilled = features[..., : batch.targets.shape[-1]].float()
        error = (distilled - batch.targets).square().mean(-1)
        error = error + 1 - nn.functional.cosine_similarity(distilled, batch.targets, dim=-1)
        weight = batch.weights * ~batch.masked
        units = nn.functional.cross_entropy(unit_scores.transpose(1, 2), batch.units, reduction="none")
        share = batch.weights * torch.where(batch.masked, 1.0, 0.3)
        distillation, prediction = (error * weight).sum() / weight.sum(), (units * share).sum() / share.sum()
        phonemes = batch.phonemes.masked_fill(batch.masked, UNKNOWN)
        spelling = nn.functional.cross_entropy(
            phoneme_scores.transpose(1, 2), phonemes, ignore_index=UNKNOWN, reduction="sum"
        )
        spelling = spelling / (phonemes != UNKNOWN).sum().clamp_min(1)
        return distillation + UNIT_WEIGHT * prediction + PHONEME_WEIGHT * spelling


@torch.inference_mode()
def explained_variance(encoder: SpeechEncoder, utterances: list[Utterance], target: Target) -> float:
    """Share of the teacher's variance that the encoder explains on whole utterances, over streamed windows."""
    error = total = 0.0
    for utterance in utterances:
        truth = target(utterance.features)
        features = extract(encoder, utterance.pcm.astype(np.float32) / 32768)[: len(truth), : truth.shape[1]].numpy()
        error += float(((features - truth[: len(features)]) ** 2).sum())
        total += float((truth**2).sum())
    return 1 - error / total


@torch.inference_mode()
def phoneme_accuracy(student: Student, sentences: list[Spoken], phonemes: list[str]) -> float:
    """Share of the frames of `sentences` whose phoneme the student names, of frames with one of `phonemes`."""
    right, total, width = 0, 0, student.encoder.config.frame_features
    for spoken in sentences:
        features = extract(student.encoder, spoken.pcm)[:, :width]
        numbers = student.name_phonemes(features).argmax(-1).tolist()
        named = zip(numbers, spoken.frame_phonemes(), strict=True)
        pairs = [(phonemes[number], true) for number, true in named if true in phonemes]
        right, total = right + sum(a == b for a, b in pairs), total + len(pairs)
    return right / max(1, total)

"""People enrolled on one half of a clip and judged on the other, for `training.evaluate.mouths`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.models.geometry import GeometryGenerator
from engine.models.morphable import MorphableModel
from engine.models.persona import CLOSED_OPENING, LipSpace, PersonaMap
from engine.models.speech import FRAME_SAMPLES, SpeechEncoder, extract
from precompute.persona import Persona, persona_of, speech_frames
from precompute.rest import rest_expression
from training.evaluate import lips as measures
from training.geometry.corpus import Example
from training.geometry.generator import predict
from training.geometry.loss import GeometryLoss
from training.geometry.train import aligned_sound

MIN_FRAMES, LONG_FRAMES = 75, 250  # of a half
QUIET_FRAMES, CLOSING_FRAMES = 25, 5


@dataclass(frozen=True)
class Half:
    """One half of a clip, enrolled: its expressions beta [T, K_e], and the frames `judged` of the other half."""

    example: Example
    enrolled: slice
    judged: slice
    persona: Persona
    rest: Tensor

    @property
    def name(self) -> str:
        return f"{self.example.clip.name}, frames {self.judged.start}-{self.judged.stop}"

    @property
    def long(self) -> bool:
        return self.judged.stop - self.judged.start >= LONG_FRAMES


@dataclass(frozen=True)
class Sound:
    """Sound pcm [(T + QUIET_FRAMES) * 640], silence at its end, and its features [T + QUIET_FRAMES, D]."""

    example: Example
    pcm: np.ndarray
    features: Tensor


class Judge:
    """Enrols halves and measures them with one pair of networks."""

    def __init__(self, encoder: SpeechEncoder, generator: GeometryGenerator, model: MorphableModel) -> None:
        self.encoder, self.generator, self.model = encoder, generator, model
        self.space, self.truth = LipSpace(model), GeometryLoss(model).offsets

    def hear(self, example: Example, offset_frames: float) -> Sound:
        pcm = aligned_sound(example, offset_frames)
        pcm = np.concatenate([pcm, np.zeros(QUIET_FRAMES * FRAME_SAMPLES, np.float32)])
        return Sound(example, pcm, extract(self.encoder, pcm))

    def template(self, example: Example) -> Tensor:
        return (self.model.mean + self.model.shape(example.alpha))[self.generator.lower]

    def enrol(self, sound: Sound, enrolled: slice, judged: slice) -> Half:
        example = sound.example
        beta = example.beta[enrolled]
        predicted = predict(self.generator, self.model, sound.features, example.alpha, beta)[enrolled]
        used = speech_frames(sound.pcm[enrolled.start * FRAME_SAMPLES : enrolled.stop * FRAME_SAMPLES])
        persona = persona_of(self.model, example.alpha, beta, predicted, torch.from_numpy(used))
        alpha, good = example.alpha.expand(len(beta), -1), np.ones(len(beta), bool)
        rest = self.model.expression(rest_expression(self.model, alpha, beta, good))[self.generator.lower]
        return Half(example, enrolled, judged, persona, self.template(example) + rest)

    def speak(self, half: Half, sound: Sound, persona: Tensor) -> Tensor:
        """Offsets [T + QUIET_FRAMES, V_low, 3] of the person of `half` with that persona."""
        example, template = half.example, self.template(half.example)
        plain = predict(self.generator, self.model, sound.features, example.alpha, example.beta[half.enrolled])
        return PersonaMap(self.space, persona, template, half.rest)(template + plain) - template

    def measure(self, half: Half, sound: Sound, offsets: Tensor) -> dict[str, float]:
        """The figures of predicted offsets of a whole clip on the judged half."""
        template, judged = self.template(half.example), half.judged
        true, ours = self.truth(half.example.beta[judged]), offsets[judged]
        openings = [self.space.opening(template + part) for part in (true, ours)]
        true_lips, lips = (part[:, self.space.lips] for part in (true, ours))
        ratio = float(openings[1].mean() / openings[0].mean())
        pcm = sound.pcm[judged.start * FRAME_SAMPLES : judged.stop * FRAME_SAMPLES]
        figures = {
            "open": ratio,
            "open_error": abs(float(np.log(ratio))),
            "deviation": measures.deviation(lips) / measures.deviation(true_lips),
            "jerk": measures.jerk(lips) / measures.jerk(true_lips),
            "shape": measures.shape_distance(lips, true_lips),
            "correlation": measures.correlation(*openings),
            "mtm_ms": measures.misalignment_ms(openings[1], openings[0]),
        }
        if len(lips) >= 4 * measures.WINDOW_FRAMES:
            figures["loudness"] = measures.loudness_correlation(pcm, lips)
            figures["loudness_true"] = measures.loudness_correlation(pcm, true_lips)
        return figures

    def silence(self, half: Half, plain: Tensor, offsets: Tensor) -> dict[str, float]:
        """Leak and opening in the silence after the sound, of offsets with the persona and plain ones."""
        template = self.template(half.example)
        true = self.space.opening(template + self.truth(half.example.beta[half.judged]))
        low, middle = torch.quantile(true, torch.tensor([0.1, 0.5])).tolist()
        before, after = (
            self.space.opening(template + part[-QUIET_FRAMES:])[CLOSING_FRAMES:] for part in (plain, offsets)
        )
        leak = (before <= CLOSED_OPENING) & (after > CLOSED_OPENING)
        return {"leak": float(leak.float().mean()), "quiet": float(after.mean() - low) / max(middle - low, 1e-3)}

    def voices(self, half: Half, sounds: Iterable[Sound], persona: Tensor) -> tuple[dict[str, float], Tensor]:
        """The lips for other people's sound against the judged half: figures, and the lips of the first sound."""
        template = self.template(half.example)
        true = self.truth(half.example.beta[half.judged])
        spoken = [self.speak(half, sound, persona)[:-QUIET_FRAMES] for sound in sounds]
        lips = torch.cat(spoken)
        opening, wanted = (self.space.opening(template + part).mean() for part in (lips, true))
        shape = measures.shape_distance(lips[:, self.space.lips], true[:, self.space.lips])
        return {"voices_open": float(opening / wanted), "voices_shape": shape}, spoken[0]


def halves_of(example: Example) -> list[tuple[slice, slice]]:
    """(enrolled, judged), both ways."""
    frames = len(example.beta)
    first, second = slice(0, frames // 2), slice(frames // 2, frames)
    return [(first, second), (second, first)] if frames >= 2 * MIN_FRAMES else []

"""Closure of the lips at p, b and m, in voices and languages outside the training.

- closure recall: share of the bilabials of the test sentences (see `training.speech.phonemes`) at which the opening of
  the inner lips falls below CLOSED_OPENING at some frame from one before the phoneme to one after it.
- open vowels closed: the same at the middle of open vowels (a and the like). A mouth that is always shut has 1 in both.

Every sentence is spoken by several faces: the shape and style of validation people.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from engine.models.geometry import GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.persona import CLOSED_OPENING
from engine.models.speech import SpeechEncoder, extract
from training.geometry.corpus import Example
from training.geometry.generator import predict
from training.geometry.loss import GeometryLoss
from training.speech.phonemes import BILABIALS, OPEN_VOWELS, Spoken, load_spoken

log = logging.getLogger(__name__)

FACES = 6
SLACK_FRAMES = 1
SHEET_FRAMES = 40
MOUTH_PX = 88


def _closed(opening: Tensor, spans: list[tuple[int, int]]) -> list[bool]:
    """Whether the lips touch at some frame of each span (first frame, frame after the last)."""
    return [bool((opening[max(0, a) : b] < CLOSED_OPENING).any()) for a, b in spans if a < len(opening)]


def _share(closed: dict[str, list[bool]]) -> float:
    return float(np.mean([value for values in closed.values() for value in values]))


def judge_closures(
    encoder: SpeechEncoder,
    generator: GeometryGenerator,
    model: MorphableModel,
    examples: list[Example],
    runs: Path,
    out: Path,
    own: Callable[[Example, Tensor], Tensor] = lambda _, vertices: vertices,
) -> dict[str, Any] | None:
    """The figures of the module's docstring over all test sentences and by language; draws `out`/spoken.png.

    own: makes predicted lower vertices [T, V_low, 3] those of the person of an example, by default as predicted.

    None where there are no test sentences (`python -m training speak --kokoro FOLDER`).
    """
    sentences = load_spoken(runs, "test")
    if not sentences:
        log.warning("no test sentences: closures are not judged; `python -m training speak --kokoro FOLDER` makes them")
        return None
    measure = GeometryLoss(model)
    faces = list({e.clip.identity: e for e in examples}.values())[:FACES]
    closures: dict[str, list[bool]] = defaultdict(list)
    vowels: dict[str, list[bool]] = defaultdict(list)
    rows = []
    for spoken in sentences:
        features = extract(encoder, spoken.pcm)
        for face in faces:
            offsets = predict(generator, model, features, face.alpha, face.beta)
            vertices = own(face, offsets + (model.mean + model.shape(face.alpha))[generator.lower])
            opening = measure.opening(vertices)
            spans = [(a - SLACK_FRAMES, b + SLACK_FRAMES) for a, b in spoken.spans(BILABIALS)]
            closures[spoken.language] += _closed(opening, spans)
            middles = [(a + b) // 2 for a, b in spoken.spans(OPEN_VOWELS)]
            vowels[spoken.language] += _closed(opening, [(m, m + 1) for m in middles])
            if face is faces[0]:
                rows.append((spoken, vertices))
    out.mkdir(parents=True, exist_ok=True)
    shown = {spoken.language: (spoken, vertices) for spoken, vertices in rows}
    sheet = np.concatenate([_strip(generator, *row) for row in shown.values()])
    cv2.imwrite(str(out / "spoken.png"), sheet)
    return {
        "bilabials": sum(map(len, closures.values())) // len(faces),
        "closure_recall": _share(closures),
        "open_vowels_closed": _share(vowels),
        "by_language": {
            language: {
                "closure_recall": float(np.mean(closures[language])),
                "open_vowels_closed": float(np.mean(vowels[language] or [False])),
            }
            for language in closures
        },
    }


def _strip(generator: GeometryGenerator, spoken: Spoken, vertices: Tensor) -> np.ndarray:
    """The lips in SHEET_FRAMES frames from the first phoneme on, with the phonemes beneath: BGR [h, w, 3] uint8."""
    place = {int(v): i for i, v in enumerate(generator.lower)}
    first = max(0, int(spoken.phonemes[0][1] * 25) - 2)
    tiles = []
    for t in range(first, first + SHEET_FRAMES):
        tile = np.full((MOUTH_PX + 24, MOUTH_PX, 3), 255, np.uint8)
        if t < len(vertices):
            for ring, colour in ((LIPS_OUTER, (120, 120, 220)), (LIPS_INNER, (40, 20, 60))):
                points = vertices[t, [place[v] for v in ring], :2].numpy()
                centre = vertices[t, [place[v] for v in LIPS_OUTER], :2].mean(0).numpy()
                pixels = ((points - centre) * MOUTH_PX * 1.1 + MOUTH_PX / 2).astype(np.int32)
                cv2.fillPoly(tile, [pixels], colour, cv2.LINE_AA)
            phonemes = "".join(s for s, a, b in spoken.phonemes if a * 25 < t + 1 and b * 25 > t)
            plain = phonemes.translate(_PLAIN).encode("ascii", "replace").decode()
            cv2.putText(tile, plain, (4, MOUTH_PX + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    half = SHEET_FRAMES // 2
    return np.concatenate([np.concatenate(tiles[:half], 1), np.concatenate(tiles[half:], 1)])


# OpenCV's fonts are ASCII: the nearest letters of SAMPA.
_PLAIN = str.maketrans("ɑɐɒʌəɛɪɔʊʃʒŋθðɹʁæɾɜˈˌːʰɯɲχ\u0303ɡ", "A6QV@EIOUSZNTDrR{43',:hMJX~g")

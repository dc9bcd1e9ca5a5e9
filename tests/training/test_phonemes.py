"""Sentences whose phonemes are known, and lips that are taught to close by them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from engine.errors import MediaError
from engine.models.morphable import MorphableModel
from engine.models.weights import load_face_model
from training.geometry.loss import APART, CONTACT_WEIGHT, GAPS, TOUCHING, UNDER_LIP, UPPER_LIP, GeometryLoss
from training.speech.phonemes import (
    BILABIALS,
    KOKORO_TEST_VOICES,
    MEDLEYS,
    OPEN_VOWELS,
    SENTENCES,
    Spoken,
    espeak,
    medleys,
    without_marks,
)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_face_model()


def test_espeak_says_when_each_phoneme_sounds() -> None:
    pcm, phonemes = espeak("Bob may map a pump.", "en-us")
    bilabials = [symbol for symbol, _, _ in phonemes if symbol in BILABIALS]
    assert bilabials == ["b", "b", "m", "m", "p", "p", "m", "p"]
    starts = [start for _, start, _ in phonemes]
    assert starts == sorted(starts) and phonemes[-1][2] <= len(pcm) / 16_000 + 0.01
    loud = {"vowels": [], "bilabials": []}
    for symbol, start, end in phonemes:
        part = pcm[int(start * 16_000) : int(end * 16_000)]
        kind = "bilabials" if symbol in BILABIALS else "vowels" if symbol in OPEN_VOWELS else None
        if kind:
            loud[kind].append(float(np.sqrt((part**2).mean())))
    assert np.mean(loud["vowels"]) > 2 * np.mean(loud["bilabials"])  # times that are off would mix them


def test_a_voice_that_does_not_exist_is_an_error_with_its_name() -> None:
    with pytest.raises(MediaError, match="no-such-voice"):
        espeak("Hello.", "no-such-voice")


def test_stress_lends_its_time_to_the_vowel_and_length_to_what_precedes() -> None:
    marked = [("p", 0.0, 0.1), ("ˈ", 0.1, 0.2), ("a", 0.2, 0.3), ("ː", 0.3, 0.4), (" ", 0.4, 0.5), ("m", 0.5, 0.6)]
    assert without_marks(marked) == [("p", 0.0, 0.1), ("a", 0.1, 0.4), ("m", 0.5, 0.6)]


def test_a_phoneme_has_at_least_two_frames() -> None:
    spoken = Spoken("x", "en", "", np.zeros(16_000, np.float32), [("p", 0.41, 0.43), ("a", 0.5, 0.7), ("m", 0.8, 0.9)])
    assert spoken.spans(BILABIALS) == [(10, 12), (20, 23)]


@pytest.mark.parametrize("wide", [True, False])
def test_an_open_mouth_costs_where_the_lips_must_touch_and_a_shut_one_where_they_must_not(
    model: MorphableModel, wide: bool
) -> None:
    measure = GeometryLoss(model)
    template = model.mean[model.lower][None]
    lips = template.clone()  # its mouth opened or shut, as mouths are: more in the middle
    place = {int(v): i for i, v in enumerate(model.lower.nonzero().flatten())}
    for above, below, share in zip(UPPER_LIP, UNDER_LIP, GAPS, strict=True):
        middle = (template[0, place[above]] + template[0, place[below]]) / 2
        gap = template[0, place[below]] - middle
        reach = gap * (APART * share if wide else 0.0) / (2 * gap.norm())
        lips[0, place[above]], lips[0, place[below]] = middle - reach, middle + reach
    frames = 4
    shown = lips[:, None].expand(1, frames, -1, -1)
    beta, known = torch.zeros(1, frames, len(model.expression_basis)), torch.ones(1, frames)
    free, touch, apart = (measure(shown, template, beta, known, torch.full((1, frames), c)) for c in (0.0, 1.0, -1.0))
    squares = torch.tensor(GAPS).square().mean() * 100**2
    expected = CONTACT_WEIGHT * squares * ((APART - TOUCHING) ** 2 if wide else APART**2)
    torch.testing.assert_close(touch - free, expected if wide else torch.tensor(0.0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(apart - free, torch.tensor(0.0) if wide else expected, atol=1e-3, rtol=1e-3)


def test_every_frame_has_the_phoneme_at_its_middle() -> None:
    spoken = Spoken(
        "x", "en", "", np.zeros(4_000, np.float32), [("p", 0.01, 0.07), ("aɪ", 0.07, 0.16), ("t", 0.19, 0.4)]
    )
    assert spoken.frame_phonemes() == ["p", "p", "a", "a", "", "t", "t"]


def test_medleys_have_neither_the_voices_nor_the_sentences_of_the_test() -> None:
    with SENTENCES.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    written = medleys(rows)
    assert len(written) == MEDLEYS and written == medleys(rows)
    tested = {voice for names in KOKORO_TEST_VOICES.values() for voice in names}
    assert not tested & {row["voice"] for row in written}
    assert not {row["text"] for row in rows if row["split"] == "test"} & {
        row["text"] for row in rows if row["split"] == "train"
    }
    taught = {(row["language"], word) for row in rows if row["split"] == "train" for word in row["text"].split()}
    assert all((row["language"], word) in taught for row in written for word in row["text"].split())

"""Training windows of the speech encoder are those of a stream, and their targets keep their time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.models.speech import FRAME_SAMPLES, RATE_HZ, SpeechConfig, small_hubert
from training.speech.augmentation import codec, room, stretch
from training.speech.student import Student
from training.speech.teacher import Target, Utterance
from training.speech.windows import UNKNOWN, Windows

TINY = {
    **small_hubert(),
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
CONFIG = SpeechConfig(left_frames=9, hubert=TINY, frame_features=6)
AXES = 4
PHONEMES = ["a", "m"]


def utterance(frames: int, phonemes: list[str]) -> Utterance:
    """Its features count its frames, its sound is a tone that rises with them."""
    place = np.arange(frames * FRAME_SAMPLES) / FRAME_SAMPLES
    pcm = (8_000 * np.sin(2 * np.pi * np.cumsum(100 + 5 * place) / RATE_HZ)).astype(np.int16)
    return Utterance("tone", pcm, np.repeat(np.arange(frames)[:, None], AXES, 1).astype(np.float16), phonemes)


def windows(*utterances: Utterance) -> Windows:
    target = Target(np.zeros(AXES, np.float32), np.ones(AXES, np.float32), np.eye(AXES, dtype=np.float32))
    units = np.repeat(np.arange(0, 200, 10)[:, None], AXES, 1).astype(np.float32)
    return Windows(list(utterances), target, units, PHONEMES, CONFIG, seed=0)


def test_targets_are_the_teachers_features_at_the_same_time() -> None:
    batch = windows(utterance(200, ["a"] * 100 + ["m"] * 100)).draw(64)
    known = batch.weights > 0
    assert 0.5 < known.float().mean() < 1
    frames = batch.targets[..., 0]
    steps = (frames[:, 1:] - frames[:, :-1])[known[:, 1:] & known[:, :-1]]
    assert steps.min() > 0.84 and steps.max() < 1.19 and steps.std() > 0.05  # played slower and faster
    assert ((10 * batch.units - frames).abs() <= 5.01)[known & (frames < 195)].all()  # units stand at every tenth frame
    assert torch.equal(batch.phonemes[known], (frames[known] >= 99.5).long())


def test_nothing_is_known_before_and_after_the_sound_and_at_a_windows_start() -> None:
    batch = windows(utterance(30, [""] * 30)).draw(64)
    assert (batch.weights[:, :5] == 0).all() and (batch.phonemes == UNKNOWN).all()
    known = batch.weights > 0
    assert known[:, 5:].any(1).all() and not known[:, 5:].all()
    moving = batch.targets[:, 1:, 0] - batch.targets[:, :-1, 0]
    assert (moving[known[:, 1:] & known[:, :-1]] > 0.84).all()  # before and after the sound they would stand still


def test_sentences_with_phonemes_are_drawn_by_their_share() -> None:
    drawn = windows(utterance(4_000, [""] * 4_000), utterance(50, ["m"] * 50)).draw(400)
    spoken = (drawn.phonemes != UNKNOWN).any(1).float().mean()
    assert 0.2 < spoken < 0.4  # whatever their length; 0.3 are meant, a few of them without a known frame


@pytest.mark.parametrize("change", [lambda pcm, rng: room(pcm, rng), lambda pcm, rng: codec(pcm, rng)])
def test_rooms_and_codecs_keep_length_and_place(change) -> None:
    rng = np.random.default_rng(0)
    pcm = np.zeros(RATE_HZ, np.float32)
    pcm[RATE_HZ // 2 :] = 0.1 * rng.standard_normal(RATE_HZ // 2)
    for _ in range(8):
        changed = change(pcm, rng)
        assert changed.shape == pcm.shape and changed.dtype == np.float32 and not np.array_equal(changed, pcm)
        energy = (changed**2).reshape(10, -1).sum(1)
        assert energy[:4].sum() < 0.02 * energy.sum()


def test_stretched_sound_is_higher_and_shorter() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    faster = stretch(tone, 1.25, RATE_HZ // 2)
    assert np.abs(np.fft.rfft(faster)).argmax() == pytest.approx(250 / 2, abs=1)  # bins of 2 Hz


def test_a_student_learns_a_batch() -> None:
    torch.manual_seed(0)
    batch = windows(utterance(300, ["a", "m"] * 150)).draw(8)
    batch.targets.div_(100)
    student = Student(CONFIG, 20, len(PHONEMES))
    optimiser = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = student.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]

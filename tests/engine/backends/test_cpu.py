"""The CPU backend's faster arithmetic against float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.backends.cpu import CpuBackend
from engine.models.int8 import available
from engine.models.morphable import mouth_opening
from engine.models.speech import RATE_HZ, cut, init_state
from engine.models.weights import load_face_model

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no int8 layers for this processor")


@pytest.fixture(scope="module")
def reduced() -> CpuBackend:
    return CpuBackend.embedded(int8=True)


def _speech_like(seconds: float, pitch_hz: float) -> np.ndarray:
    """Four syllables a second on an open vowel: float32 at 16 kHz."""
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    partials = np.arange(1, int(4000 / pitch_hz)) * pitch_hz
    loudness = np.exp(-(((partials - 730) / 200) ** 2)) + 0.5 * np.exp(-(((partials - 1090) / 200) ** 2))
    vowel = (loudness[:, None] * np.sin(2 * np.pi * partials[:, None] * time)).sum(0)
    return (0.1 * (0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)) * vowel).astype(np.float32)


def _windows(backend: CpuBackend, pcm: np.ndarray) -> Tensor:
    return torch.from_numpy(cut(pcm, init_state(backend.speech_config), backend.speech_config)[0])


def _openings(backend: CpuBackend, pcm: np.ndarray) -> Tensor:
    """Heights of the mouth of the mean face [T] as it says `pcm`."""
    model = load_face_model()
    features = backend.encode_speech(_windows(backend, pcm)).flatten(0, 1)[None]
    state = backend.initial_state(1)
    style = torch.zeros(1, state.keys.shape[-1])
    lower, _ = backend.step_geometry(features, style, model.mean[None], state)
    vertices = model.mean.repeat(lower.shape[1], 1, 1)
    vertices[:, model.lower] = lower[0]
    return mouth_opening(vertices)


def test_int8_moves_the_mouth_as_float32_does_and_rests_in_silence(reduced: CpuBackend) -> None:
    pcm = np.concatenate([_speech_like(2, 110), np.zeros(RATE_HZ, np.float32)])
    exact, close = (_openings(backend, pcm) for backend in (CpuBackend.embedded(int8=False), reduced))
    assert float(torch.corrcoef(torch.stack([exact, close]))[0, 1]) > 0.995
    assert float((exact - close)[60:].abs().max()) < 0.002


def test_a_window_has_the_same_features_alone_and_beside_a_louder_one(reduced: CpuBackend) -> None:
    quiet = _windows(reduced, _speech_like(0.3, 110) * 0.1)[:1]
    loud = _windows(reduced, _speech_like(0.3, 220) * 5)[:1]
    assert torch.equal(reduced.encode_speech(torch.cat([quiet, loud]))[:1], reduced.encode_speech(quiet))

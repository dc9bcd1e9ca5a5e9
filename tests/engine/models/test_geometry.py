"""Stage one as a stream: chunking, causality, sessions, and what the embedded weights have learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chunked import run_chunked
from torch import Tensor

from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.morphable import MorphableModel, mouth_opening
from engine.models.speech import SpeechConfig, SpeechEncoder, extract
from engine.models.state import batch, unbatch
from engine.models.weights import default_path, load, load_face_model

SMALL = GeometryConfig(features=6, width=32, hidden=32, heads=2, layers=2, window_frames=5)
FRAMES = 23


@pytest.fixture(scope="module")
def face() -> MorphableModel:
    return load_face_model()


@pytest.fixture(scope="module")
def generator(face: MorphableModel) -> GeometryGenerator:
    torch.manual_seed(0)
    generator = GeometryGenerator(SMALL)
    generator.start_from(face)
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def speakers(generator: GeometryGenerator, face: MorphableModel) -> tuple[Tensor, Tensor, Tensor]:
    """features [2, T, D], style [2, D], template [2, V, 3]"""
    torch.manual_seed(1)
    alpha, beta = torch.randn(2, 50), torch.randn(2, 30, 50)
    style = generator.style(face.mean + face.expression(beta))
    return torch.randn(2, FRAMES, SMALL.features), style, face.mean + face.shape(alpha)


@pytest.mark.parametrize("frames", [[1] * FRAMES, [4, 4, 4, 4, 4, 3], [2, 20, 1]])
def test_any_chunking_equals_the_whole(
    generator: GeometryGenerator,
    speakers: tuple[Tensor, Tensor, Tensor],
    frames: list[int],
) -> None:
    features, style, template = speakers

    def step(x: Tensor, state: GeometryState) -> tuple[Tensor, GeometryState]:
        return generator.step(x, style, template, state)

    streamed = run_chunked(step, features, generator.init_state(2), frames)
    torch.testing.assert_close(streamed, generator(features, style, template), atol=1e-6, rtol=1e-5)


def test_a_step_leaves_its_state_alone(generator: GeometryGenerator, speakers: tuple[Tensor, Tensor, Tensor]) -> None:
    features, style, template = speakers
    _, state = generator.step(features[:, :7], style, template, generator.init_state(2))
    keys, values = state.keys.clone(), state.values.clone()
    generator.step(features[:, 7:], style, template, state)
    assert torch.equal(state.keys, keys) and torch.equal(state.values, values)


def test_no_gradient_comes_from_the_future_or_from_before_the_window(
    generator: GeometryGenerator, speakers: tuple[Tensor, Tensor, Tensor]
) -> None:
    features, style, template = speakers
    features = features.clone().requires_grad_()
    at = 20
    generator(features, style, template)[:, at].sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().sum((0, 2)) > 0
    reach = (1 + SMALL.layers) * (SMALL.window_frames - 1)  # each attention looks back by one window
    assert reached[at] and not reached[at + 1 :].any()
    assert reached[at - 4 : at].all() and not reached[: at - reach].any()


def test_batched_sessions_do_not_meet(generator: GeometryGenerator, speakers: tuple[Tensor, Tensor, Tensor]) -> None:
    features, style, template = speakers
    alone = [generator(features[i : i + 1], style[i : i + 1], template[i : i + 1]) for i in (0, 1)]
    states = [generator.init_state(1), generator.init_state(1)]
    made: list[list[Tensor]] = [[], []]
    for first in range(0, FRAMES, 4):
        lower, state = generator.step(features[:, first : first + 4], style, template, batch(states))
        states = unbatch(state, 2)
        for session, rows in enumerate(lower):
            made[session].append(rows[None])
    for session in (0, 1):
        torch.testing.assert_close(torch.cat(made[session], 1), alone[session], atol=1e-6, rtol=1e-5)


def test_style_is_about_distribution_not_order(generator: GeometryGenerator, face: MorphableModel) -> None:
    moving = face.mean + face.expression(torch.randn(1, 40, 50))
    shuffled = moving[:, torch.randperm(40)]
    torch.testing.assert_close(generator.style(moving), generator.style(shuffled), atol=1e-4, rtol=1e-4)
    still = face.mean.expand(1, 40, -1, -1)
    assert (generator.style(moving) - generator.style(still)).abs().max() > 1e-3


def test_no_style_makes_the_lips_overflow(face: MorphableModel) -> None:
    trained = load(GeometryGenerator, GeometryConfig, default_path("geometry"))
    steepest = trained.amplitude.weight[trained.amplitude.weight.abs().sum(1).argmax()]
    features = torch.randn(1, 8, trained.config.features)
    lower = trained(features, 100 * steepest.sign()[None], face.mean[None])
    assert float((lower - face.mean[trained.lower]).abs().max()) < 10


def _opening(face: MorphableModel, lower: Tensor) -> Tensor:
    whole = face.mean.repeat(lower.shape[1], 1, 1)
    whole[:, face.lower] = lower[0]
    return mouth_opening(whole)


def test_embedded_weights_close_the_mouth_after_speech_and_hold_it_still(
    face: MorphableModel,
) -> None:
    encoder = load(SpeechEncoder, SpeechConfig, default_path("speech"))
    generator = load(GeometryGenerator, GeometryConfig, default_path("geometry"))
    time = np.arange(2 * 16_000) / 16_000
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)
    formants = sum(
        np.sin(2 * np.pi * 110 * k * time)
        * (np.exp(-(((110 * k - 730) / 200) ** 2)) + 0.5 * np.exp(-(((110 * k - 1090) / 200) ** 2)))
        for k in range(1, 40)
    )
    pcm = np.concatenate([0.1 * syllables * formants, np.zeros(16_000)]).astype(np.float32)
    opening = _opening(
        face,
        generator(
            extract(encoder, pcm)[None],
            torch.zeros(1, generator.config.width),
            face.mean[None],
        ),
    )
    spoken, after = opening[10:50], opening[60:]
    assert spoken.mean() > after.mean() + 0.02
    assert after.mean() < 0.04
    assert after.std() < 0.1 * spoken.std() + 0.002

"""The persona of a clip: learned from its speech, and left out where there is too little, none or another person's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.audio import read_speech
from engine.backends.cpu import CpuBackend
from engine.models.persona import COMPONENTS, LipSpace, PersonaMap
from engine.models.speech import FRAME_SAMPLES, windows_of
from engine.models.weights import load_face_model
from precompute.persona import MAX_GAIN, learn_persona, lip_change, speech_frames

FRAMES = 200


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def backend():
    return CpuBackend.embedded()


@pytest.fixture(scope="module")
def voices(speech_wav):
    """Eight seconds of two voices at 16 kHz."""
    paths = speech_wav, speech_wav.with_name("speech_b.wav")
    return [np.resize(read_speech(path)[::3].astype(np.float32) / 32768, FRAMES * FRAME_SAMPLES) for path in paths]


def speak(backend, model, pcm):
    """The expressions beta [FRAMES, K_e] nearest to the lips that the networks predict for pcm."""
    state, parts, template = backend.initial_state(1), [], model.mean[None]
    style = torch.zeros(1, state.keys.shape[-1])
    for window in torch.from_numpy(windows_of(pcm, backend.speech_config)):
        lower, state = backend.step_geometry(backend.encode_speech(window[None]), style, template, state)
        parts.append(lower[0])
    offsets = torch.cat(parts)[:FRAMES] - model.mean[model.lower]
    basis = model.expression_basis[:, model.lower].flatten(1)
    return torch.linalg.lstsq(basis.T, offsets.flatten(1).T).solution.T


@pytest.fixture(scope="module")
def person(backend, model, voices):
    """Somebody whose lips move twice as far as the networks predict."""
    return 2 * speak(backend, model, voices[0])


@pytest.fixture(scope="module")
def in_time(backend, model, person, voices):
    return learn(backend, model, person, voices[0])


def learn(backend, model, beta, sound, good=None):
    good = np.ones(len(beta), bool) if good is None else good
    return learn_persona(backend, model, torch.zeros(len(model.shape_basis)), beta, good, sound)


def test_a_person_who_opens_widely_gets_wide_lips(model, person, in_time):
    assert in_time.reason == "" and in_time.match > 0.8 and in_time.speech_s > 5
    space, template = LipSpace(model), model.mean[model.lower]
    predicted = template + model.expression(person / 2)[:, model.lower]
    own = PersonaMap(space, in_time.change, template, template)(predicted)
    assert 1.4 < float(space.opening(own).std() / space.opening(predicted).std()) < 2.1


def test_sound_that_is_early_gives_the_same_persona(backend, model, person, in_time, voices):
    persona = learn(backend, model, person.roll(5, 0), voices[0])
    assert persona.lag_frames == pytest.approx(5, abs=0.3)
    assert torch.allclose(persona.change, in_time.change, atol=0.15)


def test_the_sound_of_another_person_gives_none(backend, model, person, voices):
    persona = learn(backend, model, person, voices[1])
    assert not persona.change.any() and "do not follow" in persona.reason


@pytest.mark.parametrize("sound", ["none", "silent", "short"])
def test_too_little_speech_gives_none(backend, model, person, voices, sound):
    pcm = {"none": None, "silent": np.zeros(FRAMES * FRAME_SAMPLES, np.float32), "short": voices[0][: 16 * 640]}[sound]
    persona = learn(backend, model, person, pcm)
    assert not persona.change.any() and "too little speech" in persona.reason


def test_frames_that_are_tracked_badly_are_not_used(backend, model, person, voices):
    good = np.arange(FRAMES) < 40
    assert "too little speech" in learn(backend, model, person, voices[0], good).reason


def test_speech_is_found_with_the_frames_around_it():
    pcm = np.zeros(60 * FRAME_SAMPLES, np.float32)
    pcm[20 * FRAME_SAMPLES : 40 * FRAME_SAMPLES] = 0.1 * np.sin(np.arange(20 * FRAME_SAMPLES))
    assert np.flatnonzero(speech_frames(pcm)).tolist() == list(range(15, 45))


def test_noise_of_a_component_is_not_enlarged_without_limit(model):
    space, template = LipSpace(model), model.mean[model.lower]
    generator = torch.Generator().manual_seed(0)
    still, lively = (space.offsets(x * torch.randn(300, COMPONENTS, generator=generator)) for x in (0.001, 0.1))
    gains = torch.linalg.eigvalsh(lip_change(space, template, still, lively)[:, :COMPONENTS]) + 1
    assert gains.max() <= MAX_GAIN + 1e-4

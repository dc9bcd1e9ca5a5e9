"""Speech to lips at any time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.backends.cpu import CpuBackend
from engine.models.persona import LipSpace, PersonaMap, no_persona
from engine.models.weights import load_face_model
from engine.sound_file import SoundFile
from precompute.dubbing.lips import Lips, share_of_speech, speech_features, spoken

HZ = 16_000


@pytest.fixture(scope="module")
def backend():
    return CpuBackend.embedded()


@pytest.fixture(scope="module")
def speech(speech_wav):
    return np.concatenate(list(SoundFile(speech_wav).blocks(HZ)))[: 3 * HZ]


@pytest.fixture
def lips_of(backend):
    model = load_face_model()
    rest = model.mean[model.lower] + 1  # recognisable

    def lips(pcm, blocks=1):
        pieces = np.array_split(pcm, blocks)
        share = share_of_speech(spoken(pieces))
        style = torch.zeros(backend.initial_state(1).keys.shape[-1])
        persona = PersonaMap(LipSpace(model), no_persona(), model.mean[model.lower], rest)
        features = speech_features(pieces, backend)
        made = Lips(features, share, backend, template=model.mean, style=style, rest=rest, persona=persona)
        return made, rest

    return lips


def test_noise_is_heard_and_silence_is_not():
    rng = np.random.default_rng(0)
    pcm = np.concatenate([np.zeros(HZ), rng.normal(0, 0.1, HZ), np.zeros(HZ)]).astype(np.float32)
    heard = spoken([pcm])
    assert heard[26:49].all()
    assert not heard[:24].any()
    assert not heard[51:].any()


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_quiet_speech_is_heard_like_loud_speech(speech, gain):
    assert spoken([gain * speech]).mean() == pytest.approx(spoken([speech]).mean(), abs=0.05)


def test_the_size_of_the_blocks_does_not_matter(speech):
    assert np.array_equal(spoken([speech]), spoken(np.array_split(speech, 17)))


def test_short_pauses_belong_to_the_speech_and_long_ones_do_not():
    rng = np.random.default_rng(0)
    word, short, long = (
        rng.normal(0, 0.1, HZ // 2).astype(np.float32),
        np.zeros(HZ // 5, np.float32),
        np.zeros(HZ, np.float32),
    )
    heard = spoken([np.concatenate([word, short, word, long, word])])
    assert heard[:30].all()
    assert not heard[36:50].any()


def test_digital_silence_is_never_speech():
    assert not spoken([np.zeros(HZ, np.float32)]).any()
    assert len(spoken([])) == 0


def test_lips_follow_speech_a_little_longer_than_it_sounds_and_then_rest():
    share = share_of_speech(np.r_[np.zeros(30, bool), np.ones(20, bool), np.zeros(30, bool)])
    assert (share[30:50] == 1).all()
    assert (share[:20] == 0).all()
    assert share[51] == 1
    assert (share[65:] == 0).all()
    assert np.abs(np.diff(share)).max() <= 0.2 + 1e-9


def test_lips_at_25_fps_are_the_networks_own_frames(lips_of, speech, backend):
    lips, _ = lips_of(speech)
    model = load_face_model()
    state, frames = backend.initial_state(1), []
    for features in speech_features([speech], backend):
        style = torch.zeros(1, state.keys.shape[-1])
        lower, state = backend.step_geometry(features[None], style, model.mean[None], state)
        frames.append(lower[0])
    expected = torch.cat(frames)
    for n in (20, 21, 40):
        assert torch.allclose(lips.at(n / 25, 1 / 25), expected[n], atol=1e-5)


@pytest.mark.parametrize("fps", [24000 / 1001, 30000 / 1001, 50, 60])
def test_lips_at_other_rates_lie_between_the_frames_around_the_middle_of_the_picture(lips_of, speech, fps):
    at_25, _ = lips_of(speech)
    frames = torch.stack([at_25.at(n / 25, 1 / 25) for n in range(60)])
    lips, _ = lips_of(speech)
    for k in range(10, 40):
        place = (k + 0.5) / fps * 25 - 0.5
        low = int(np.floor(place))
        between = frames[low].lerp(frames[low + 1], place - low)
        assert torch.allclose(lips.at(k / fps, 1 / fps), between, atol=1e-5)


def test_the_mouth_rests_before_and_after_the_speech(lips_of, speech):
    lips, rest = lips_of(speech)
    assert torch.equal(lips.at(-0.5, 0.04), rest)
    assert torch.equal(lips.at(30.0, 0.04), rest)


def test_lips_may_be_asked_for_with_gaps(lips_of, speech):
    every, _ = lips_of(speech)
    wanted = [every.at(n / 25, 1 / 25) for n in range(60)][50]
    some, _ = lips_of(speech)
    assert torch.allclose(some.at(50 / 25, 1 / 25), wanted, atol=1e-6)

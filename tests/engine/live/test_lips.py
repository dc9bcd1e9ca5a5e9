"""The lips of a pipeline: the persona of its avatar and the expressiveness of its sessions act on what is predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.audio import read_speech
from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.config import SessionConfig
from engine.errors import SettingError
from engine.live.job import LipsJob
from engine.live.pipeline import AvatarPipeline, Work
from engine.models.persona import COMPONENTS, LipSpace, PersonaMap, no_persona
from engine.models.weights import load_face_model

WIDE = torch.cat([torch.eye(COMPONENTS), torch.zeros(COMPONENTS, 1)], 1)


@pytest.fixture(scope="module")
def backend():
    return CpuBackend.embedded()


@pytest.fixture(scope="module")
def pipelines(backend, avatar_path):
    """The same person without a persona, and with one that doubles all components."""
    avatar, model = Avatar.open(avatar_path), load_face_model()
    return [AvatarPipeline(backend, replace(avatar, persona=persona), model) for persona in (no_persona(), WIDE)]


@pytest.fixture(scope="module")
def jobs(speech_wav):
    """A function: the first step of a session of a pipeline, in the middle of a word."""
    pcm = read_speech(speech_wav)[24_000:72_000]

    def first_step(pipeline, config):
        timeline = pipeline.new_timeline(config)
        timeline.start_utterance("speech", 48_000, 1)
        timeline.push_audio("speech", pcm.tobytes())
        job = timeline.take(0, 0)
        assert isinstance(job, LipsJob)
        return job

    return first_step


def test_each_avatar_of_a_batch_gets_its_own_persona(pipelines, jobs):
    plain = pipelines[0]
    jobs_of_both = [Work(pipeline, jobs(pipeline, SessionConfig())) for pipeline in pipelines]
    predicted, own = (step.lips for step in plain.perform_all(jobs_of_both))
    model, alpha = load_face_model(), plain.avatar.alpha.mean(0)
    template = (model.mean + model.shape(alpha))[model.lower]
    expected = PersonaMap(LipSpace(model), WIDE, template, plain.rest)(predicted)
    assert torch.allclose(own, expected, atol=1e-5) and not torch.allclose(own, predicted, atol=1e-3)


def test_a_session_moves_its_lips_as_far_as_its_settings_say(pipelines, jobs):
    plain = pipelines[0]
    still, own, far = (
        plain.perform(jobs(plain, SessionConfig(expressiveness=factor))).lips for factor in (0.0, 1.0, 2.0)
    )
    distances = [float((lips - plain.rest).norm()) for lips in (still, own, far)]
    assert distances[0] < 0.5 * distances[1] < 0.8 * distances[2]


@pytest.mark.parametrize("factor", [-0.1, 2.5, float("nan")])
def test_an_expressiveness_outside_its_range_is_refused(factor):
    with pytest.raises(SettingError, match="--expressiveness .*expected 0 to 2"):
        SessionConfig(expressiveness=factor)

"""The persona: it changes open lips, and never those that touch or rest."""

from __future__ import annotations

import pytest
import torch

from engine.models.morphable import mouth_opening
from engine.models.persona import CLOSED_OPENING, COMPONENTS, OPEN_OPENING, LipSpace, PersonaMap, no_persona
from engine.models.weights import load_face_model


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def space(model):
    return LipSpace(model)


@pytest.fixture(scope="module")
def template(model):
    return model.mean[model.lower]


@pytest.fixture(scope="module")
def lips(model):
    """Lower faces of every opening, [400, V_low, 3]."""
    beta = 0.7 * torch.randn(400, len(model.expression_basis), generator=torch.Generator().manual_seed(0))
    return model.vertices(torch.zeros(len(model.shape_basis)), beta)[:, model.lower]


def wide():
    """A persona that makes every component 1.8 times as large and opens the mouth further."""
    return torch.cat([0.8 * torch.eye(COMPONENTS), torch.full((COMPONENTS, 1), -0.05)], 1)


def test_the_opening_is_that_of_the_whole_face(model, space, lips):
    whole = model.mean.repeat(len(lips), 1, 1)
    whole[:, model.lower] = lips
    assert torch.allclose(space.opening(lips), mouth_opening(whole), atol=1e-6)


def test_no_persona_changes_nothing(space, template, lips):
    assert torch.equal(PersonaMap(space, no_persona(), template, template)(lips), lips)


@pytest.mark.parametrize("expressiveness", [0.0, 0.5, 1.0, 2.0])
def test_lips_that_touch_stay_as_they_are(space, template, lips, expressiveness):
    closed = lips[space.opening(lips) <= CLOSED_OPENING]
    assert len(closed) > 10
    rest = template + 0.01
    assert torch.equal(PersonaMap(space, wide(), template, rest)(closed, expressiveness), closed)


def test_a_resting_mouth_does_not_move(space, template, lips):
    rest = lips[space.opening(lips).argmin()]
    assert torch.equal(PersonaMap(space, wide(), template, rest)(rest, 2.0), rest)


def test_open_lips_get_the_components_of_the_person(space, template, lips):
    opened = lips[space.opening(lips) >= OPEN_OPENING]
    own = PersonaMap(space, wide(), template, template)(opened)
    expected = 1.8 * space.components(opened - template) - 0.05
    assert torch.allclose(space.components(own - template), expected, atol=1e-5)


def test_the_lower_face_of_components_has_these_components(space):
    components = torch.randn(5, COMPONENTS, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(space.components(space.offsets(components)), components, atol=1e-5)


def test_the_change_begins_without_a_jump(space, template, model):
    """A mouth that opens slowly: no step of the map is larger than a few steps of the mouth."""
    beta = torch.zeros(200, len(model.expression_basis))
    shut, opened = (template + space.offsets(torch.full((COMPONENTS,), x)) for x in (0.08, -0.08))
    lips = shut + torch.linspace(0, 1, len(beta))[:, None, None] * (opened - shut)
    own = PersonaMap(space, wide(), template, template)(lips)
    assert own.diff(dim=0).abs().max() < 8 * lips.diff(dim=0).abs().max()


def test_expressiveness_is_the_distance_from_rest(space, template, lips):
    opened = lips[space.opening(lips) >= OPEN_OPENING]
    rest = template.clone()
    persona = PersonaMap(space, no_persona(), template, rest)
    assert torch.allclose(persona(opened, 0.0), rest.expand_as(opened), atol=1e-6)
    assert torch.allclose(persona(opened, 2.0) - rest, 2 * (opened - rest), atol=1e-6)

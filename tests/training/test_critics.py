"""The sync expert finds the lag of lips, and has no confidence in the sound of another clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.models.morphable import MorphableModel
from engine.models.weights import load_face_model
from training.evaluate.critics import SyncExpert, sync_expert
from training.geometry.corpus import Item
from training.geometry.loss import GeometryLoss

LIPS = slice(0, 40)


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_face_model()


def _clip(model: MorphableModel, seed: int) -> Item:
    """Speech features that a mouth follows: three smooth signals in a fixed mixture."""
    generator = torch.Generator().manual_seed(seed)
    driving = torch.randn(1, 3, 130, generator=generator)
    driving = torch.nn.functional.avg_pool1d(driving, 4, 1)[0].T[:120] * 2
    mixture = torch.randn(3, 12, generator=torch.Generator().manual_seed(7))
    beta = torch.zeros(120, len(model.expression_basis))
    beta[:, :3] = driving
    return Item(driving @ mixture, beta, torch.ones(120), torch.zeros(120), 0)


@pytest.fixture(scope="module")
def expert(model: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> SyncExpert:
    measure = GeometryLoss(model)
    lips = torch.zeros(int(model.lower.sum()), dtype=torch.bool)
    lips[LIPS] = True
    items = [_clip(model, seed) for seed in range(30)]
    return sync_expert(items, measure, lips, tmp_path_factory.mktemp("sync") / "sync.pt", steps=60)


def _judgement(expert: SyncExpert, model: MorphableModel, shift: int) -> tuple[int, float]:
    clip = _clip(model, 99)
    lips: Tensor = GeometryLoss(model).offsets(clip.beta)
    return expert.judge(clip.features[10:110], lips[10 - shift : 110 - shift])


@pytest.mark.parametrize("shift", [-5, 0, 3])
def test_the_lag_of_the_lips_is_found(expert: SyncExpert, model: MorphableModel, shift: int) -> None:
    lag, confidence = _judgement(expert, model, shift)
    assert lag == shift and confidence > 0.3


def test_another_clips_sound_has_no_confidence(expert: SyncExpert, model: MorphableModel) -> None:
    _, right = _judgement(expert, model, 0)
    lips = GeometryLoss(model).offsets(_clip(model, 99).beta)
    _, wrong = expert.judge(_clip(model, 55).features, lips)
    assert wrong < 0.6 * right

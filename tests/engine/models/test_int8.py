"""Layers in int8 against the float32 ones that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.int8 import Int8Linear, available, quantise

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no int8 layers for this processor")


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(320, 96).requires_grad_(False)
    linear.weight[5] *= 100  # one row of another size: a scale for all rows would lose the others
    return linear


def test_an_int8_layer_is_within_three_percent_of_float32(linear: nn.Linear) -> None:
    x = torch.randn(2, 7, 320)
    exact, close = linear(x), Int8Linear(linear)(x)
    assert close.shape == exact.shape
    error = (close - exact).norm(dim=(0, 1)) / exact.norm(dim=(0, 1))
    assert float(error.max()) < 0.03


def test_large_activations_do_not_overflow(linear: nn.Linear) -> None:
    x = torch.full((1, 320), 50.0)
    linear.weight.abs_()
    torch.testing.assert_close(Int8Linear(linear)(x), linear(x), rtol=0.02, atol=0)


def test_every_linear_layer_inside_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 4)))
    quantise(module)
    kinds = [type(part) for part in module.modules()]
    assert kinds.count(Int8Linear) == 2 and nn.Linear not in kinds

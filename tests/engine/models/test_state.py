"""States side by side: batching sessions must not change any of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from chunked import run_chunked
from torch import Tensor

from engine.models.state import batch, unbatch


@dataclass(frozen=True)
class Inner:
    total: Tensor


@dataclass(frozen=True)
class Outer:
    count: Tensor
    parts: tuple[Inner, ...]


def _outer(value: float) -> Outer:
    return Outer(
        torch.full((1, 2), value),
        (Inner(torch.full((1,), value + 1)), Inner(torch.full((1,), value + 2))),
    )


def test_batched_states_come_apart_again() -> None:
    together = batch([_outer(0), _outer(10)])
    assert together.count.shape == (2, 2) and together.parts[1].total.tolist() == [
        2,
        12,
    ]
    first, second = unbatch(together, 2)
    assert torch.equal(second.count, _outer(10).count) and torch.equal(first.parts[0].total, _outer(0).parts[0].total)
    assert first.count.untyped_storage().nbytes() == first.count.nbytes, "it keeps none of the batch in memory"


def test_run_chunked_hands_the_state_on() -> None:
    def step(x: Tensor, state: Inner) -> tuple[Tensor, Inner]:
        sums = state.total + x.cumsum(1)
        return sums, Inner(sums[:, -1:])

    x = torch.arange(6.0)[None]
    assert torch.equal(run_chunked(step, x, Inner(torch.zeros(1, 1)), [1, 3, 2]), x.cumsum(1))

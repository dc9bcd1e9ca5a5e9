"""Runs a streaming module over a sequence in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=Any)


def run_chunked(
    step: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, state: State, frames: Iterable[int]
) -> Tensor:
    """Feed x [B, T, ...] through `step` in chunks of so many frames, which add up to T; the outputs along time."""
    outputs = []
    for part in torch.split(x, list(frames), dim=1):
        y, state = step(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)

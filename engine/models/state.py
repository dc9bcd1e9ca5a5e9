"""The streaming contract: `step(x, state) -> (y, state)`, and what can be done with states from outside.

A state is a frozen dataclass of tensors of fixed shape whose first axis is the batch. A step leaves the state that it
was given untouched, so a cancelled step loses nothing and one copy of the weights serves every session. Sessions are
batched by putting their states side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=Any)  # a frozen dataclass whose fields are tensors or tuples of such dataclasses


def _merge(parts: Sequence[Any], join: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """Apply `join` to the tensors that stand at the same place in all `parts`."""
    first = parts[0]
    if isinstance(first, Tensor):
        return join(parts)
    if isinstance(first, tuple):
        return tuple(_merge(group, join) for group in zip(*parts, strict=True))
    fields = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _merge([getattr(part, name) for part in parts], join) for name in fields})


def batch(states: Sequence[State]) -> State:
    """One state of all the sessions, in order, along the first axis."""
    merged: State = _merge(states, lambda tensors: torch.cat(list(tensors)))
    return merged


def unbatch(state: State, sessions: int) -> list[State]:
    """The states of `sessions` sessions that `batch` had put together, one row each."""

    def row(session: int) -> Callable[[Sequence[Tensor]], Tensor]:
        return lambda tensors: tensors[0][session : session + 1]

    return [_merge([state], row(session)) for session in range(sessions)]


def run_chunked(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    x: Tensor,
    state: State,
    frames: Iterable[int],
) -> Tensor:
    """Feed x [B, T, ...] through `step` in chunks of so many frames each and join the outputs along time.

    `frames` has to add up to T.
    """
    outputs = []
    for part in torch.split(x, list(frames), dim=1):
        y, state = step(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)

"""States of streaming modules, `step(x, state) -> (y, state)`: functions that batch and split them.

A state is a frozen dataclass of tensors of fixed shape whose first axis is the batch. A step leaves its input state
unchanged, so that a cancelled step loses nothing and one copy of the weights serves every session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=Any)  # a frozen dataclass whose fields are tensors or tuples of such dataclasses


def _merge(parts: Sequence[Any], join: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """Apply `join` to the tensors at the same place in all `parts`."""
    first = parts[0]
    if isinstance(first, Tensor):
        return join(parts)
    if isinstance(first, tuple):
        return tuple(_merge(group, join) for group in zip(*parts, strict=True))
    fields = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: _merge([getattr(part, name) for part in parts], join) for name in fields})


def batch(states: Sequence[State]) -> State:
    """One state of all sessions, in order along the first axis."""
    merged: State = _merge(states, lambda tensors: torch.cat(list(tensors)))
    return merged


def unbatch(state: State, sessions: int) -> list[State]:
    """The states of the sessions in a state that `batch` made, one row each. They are copies: a view would keep the
    tensors of the whole batch in memory for as long as one of the sessions speaks."""

    def row(session: int) -> Callable[[Sequence[Tensor]], Tensor]:
        return lambda tensors: tensors[0][session : session + 1].clone()

    return [_merge([state], row(session)) for session in range(sessions)]

"""The speaker's mouth at rest: closed, relaxed and symmetric."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from engine.models.morphable import MorphableModel, mouth_opening
from engine.models.persona import CLOSED_OPENING

CLOSED_SHARE = 0.2  # of the frames, by mouth opening: a pause, or the closure of an m or p
STILL_SHARE = 0.5  # of those, by speed: keeps pauses, drops closures
REST_OPENING = 0.008
RIDGE = 1e-3
_COLUMNS = ((82, 87), (13, 14), (312, 317))  # upper and lower inner lip


def mirrored(model: MorphableModel) -> Tensor:
    """For every vertex the index [V] of its counterpart on the other side of the face."""
    flipped = model.mean * torch.tensor([-1.0, 1.0, 1.0])
    flipped[:, 0] += 2 * model.mean[[10, 152, 1, 168], 0].mean()
    # Each vertex once, as faces are never quite symmetric.
    distance = torch.cdist(flipped, model.mean)
    pairs = linear_sum_assignment((distance + distance.T).numpy())[1]
    return torch.from_numpy(pairs)


def _least_change(rows: Tensor, wanted: Tensor) -> Tensor:
    """The smallest change of coefficients [K] that changes rows [n, K] @ coefficients by about `wanted` [n]."""
    gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1])
    solution: Tensor = torch.linalg.solve(gram, rows.T @ wanted)
    return solution


def rest_expression(model: MorphableModel, alpha: Tensor, beta: Tensor, good: np.ndarray) -> Tensor:
    """Expression coefficients [K_e] of the person's mouth at rest: closed, relaxed, symmetric.

    The median over the stillest of the most closed frames; alpha [T, K_s], beta [T, K_e], of frames good [T] bool.
    """
    opening = mouth_opening(model.vertices(alpha, beta)).numpy()
    speed = np.linalg.norm(np.gradient(beta.numpy(), axis=0), axis=1)
    candidates = np.flatnonzero(good)
    closed = candidates[np.argsort(opening[candidates])[: max(5, int(CLOSED_SHARE * len(candidates)))]]
    still = closed[np.argsort(speed[closed])[: max(5, int(STILL_SHARE * len(closed)))]]
    rest = beta[torch.from_numpy(still)].median(0).values
    rest = rest + _to_symmetry(model, rest)
    return rest + _to_closure(model, alpha.mean(0), rest)


def _to_symmetry(model: MorphableModel, rest: Tensor) -> Tensor:
    """Change of coefficients that makes the lower face symmetric."""
    offsets = model.expression(rest)
    other = offsets[mirrored(model)] * torch.tensor([-1.0, 1.0, 1.0])
    wanted = torch.where(model.lower[:, None], (other - offsets) / 2, torch.zeros(()))
    return _least_change(model.expression_basis.flatten(1).T, wanted.flatten())


def _to_closure(model: MorphableModel, alpha: Tensor, rest: Tensor) -> Tensor:
    """Change of coefficients that brings open lips together; none where they already touch."""
    vertices = model.vertices(alpha, rest)
    opening = float(mouth_opening(vertices))
    if opening <= CLOSED_OPENING:
        return torch.zeros_like(rest)
    upper, lower = (list(side) for side in zip(*_COLUMNS, strict=True))
    basis = model.expression_basis[:, lower] - model.expression_basis[:, upper]
    gap = vertices[lower] - vertices[upper]
    # 30: closing outweighs the ridge, which would leave the lips ajar.
    return _least_change(30 * basis.flatten(1).T, 30 * (REST_OPENING / opening - 1) * gap.flatten())

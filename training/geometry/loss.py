"""The loss of the geometry generator on the lower face."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel

TOUCHING = 0.012  # model units: the renderer draws this opening closed
APART = 0.06  # the median opening of the training people
CONTACT_WEIGHT = 1.5
# Pairs of the inner lips from corner to corner, and their gaps relative to the middle one: means of the training
# people, equal for mouths open a little and wide.
UPPER_LIP, UNDER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415), (95, 88, 178, 87, 14, 317, 402, 318, 324)
GAPS = (0.33, 0.59, 0.82, 0.97, 1.0, 0.97, 0.82, 0.59, 0.33)


class GeometryLoss:
    """Positions (lips count more, depth less), velocities, and the mouth's opening, in hundredths of a model unit."""

    def __init__(self, model: MorphableModel) -> None:
        index = model.lower.nonzero().flatten().tolist()
        place = {vertex: i for i, vertex in enumerate(index)}
        self._basis = model.expression_basis[:, index]
        weight = torch.ones(len(index), 3)
        weight[[place[v] for v in {*LIPS_OUTER, *LIPS_INNER}]] = 5.0
        self._weight = weight * torch.tensor([1.0, 1.0, 0.3]) / weight.sum()
        self._above, self._below = [place[v] for v in UPPER_LIP], [place[v] for v in UNDER_LIP]
        self._profile = torch.tensor(GAPS)

    def offsets(self, beta: Tensor) -> Tensor:
        """True offsets of the lower vertices [..., V_low, 3]."""
        return torch.einsum("...k,kvc->...vc", beta, self._basis)

    def opening(self, vertices: Tensor) -> Tensor:
        """Height of the inner lips [...] of lower vertices [..., V_low, 3]: the middle three gaps."""
        return self._gaps(vertices)[..., 3:6].mean(-1)

    def _gaps(self, vertices: Tensor) -> Tensor:
        gaps = vertices[..., self._above, :] - vertices[..., self._below, :]
        return torch.linalg.vector_norm(gaps, dim=-1)

    def __call__(self, predicted: Tensor, template: Tensor, beta: Tensor, known: Tensor, contact: Tensor) -> Tensor:
        """The loss of lower vertices `predicted` [B, T, V_low, 3], for the template [B, V_low, 3] and the true beta
        [B, T, K]; known and contact [B, T] as in `Item`."""
        true = template[:, None] + self.offsets(beta)
        error = (predicted - true) * 100
        position = (error.square() * self._weight).sum((-1, -2))
        change = (error[:, 1:] - error[:, :-1]).square() * self._weight
        both = known[:, 1:] * known[:, :-1]
        wanted = self.opening(true)
        opening = ((self.opening(predicted) - wanted) * 100).square()
        opening = opening * (1 + 2 * (wanted < 0.02))  # viewers notice a mouth that does not close
        still = (change.sum((-1, -2)) * both).sum() / both.sum()
        gaps = self._gaps(predicted)  # all of them: a loss on the middle ones alone would pinch the lips there
        ajar = ((gaps - TOUCHING * self._profile) * 100).clamp_min(0).square().mean(-1)
        shut = ((APART * self._profile - gaps) * 100).clamp_min(0).square().mean(-1)
        wrong = ajar * (contact > 0) + shut * (contact < 0)
        contacts = wrong.sum() / contact.abs().sum().clamp_min(1)
        return ((position + 0.15 * opening) * known).sum() / known.sum() + 1.0 * still + CONTACT_WEIGHT * contacts

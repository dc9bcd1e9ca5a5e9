"""The persona: the map from the lips that the network predicts to those of one person (docs/model-card.md).

Lips are described by the first principal components of their offsets under the face model. A persona is an affine
change of these; chin and cheeks follow by regression. Closed lips stay as they are, whatever the persona.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel

COMPONENTS = 8
CLOSED_OPENING = 0.02  # model units, as the tracker measures lips that touch
OPEN_OPENING = 0.04  # from here on the persona acts in full
_UPPER, _UNDER = (82, 13, 312), (87, 14, 317)  # three columns of the inner lips, as in `mouth_opening`


def no_persona() -> Tensor:
    """The persona that changes nothing, [COMPONENTS, COMPONENTS + 1]."""
    return torch.zeros(COMPONENTS, COMPONENTS + 1)


class LipSpace:
    """Components of the lips, and the lower faces that belong to them. Offsets are those from the person's template."""

    def __init__(self, model: MorphableModel):
        index = model.lower.nonzero().flatten().tolist()
        place = {vertex: i for i, vertex in enumerate(index)}
        self.lips = [place[vertex] for vertex in sorted({*LIPS_OUTER, *LIPS_INNER})]
        self._upper, self._under = [place[v] for v in _UPPER], [place[v] for v in _UNDER]
        lower = model.expression_basis[:, index]
        # Coefficients are standard deviations, so the basis is a root of the covariance.
        left, scale, right = torch.linalg.svd(lower[:, self.lips].flatten(1).T, full_matrices=False)
        self._measure = left[:, :COMPONENTS]  # [3 L, COMPONENTS]
        self._lift = (lower.flatten(1).T @ right[:COMPONENTS].T / scale[:COMPONENTS]).T  # [COMPONENTS, 3 V_low]

    def components(self, offsets: Tensor) -> Tensor:
        """Offsets of the lower face [..., V_low, 3] to components [..., COMPONENTS]."""
        return offsets[..., self.lips, :].flatten(-2) @ self._measure

    def offsets(self, components: Tensor) -> Tensor:
        """The most likely offsets [..., V_low, 3] of the lower face for components [..., COMPONENTS]."""
        return (components @ self._lift).unflatten(-1, (-1, 3))

    def opening(self, lower: Tensor) -> Tensor:
        """Height of the inner lips [...] of lower vertices [..., V_low, 3], in model units."""
        gaps = lower[..., self._upper, :] - lower[..., self._under, :]
        return torch.linalg.vector_norm(gaps, dim=-1).mean(-1)


class PersonaMap:
    """Applies the persona of one person to lips that the network predicts.

    persona: [COMPONENTS, COMPONENTS + 1], the matrix and the constant of the change of components.  template, rest:
    [V_low, 3], the face without expression and the quiet mouth.
    """

    def __init__(self, space: LipSpace, persona: Tensor, template: Tensor, rest: Tensor):
        self._space, self._template, self._rest = space, template, rest
        self._matrix, self._constant = persona[:, :COMPONENTS].T, persona[:, COMPONENTS]

    def __call__(self, lower: Tensor, expressiveness: float = 1.0) -> Tensor:
        """Predicted lower vertices [..., V_low, 3] to the person's. Lips that touch are returned as they are.

        expressiveness: how far lips move from rest, 1 as the person's do.
        """
        space = self._space
        components = space.components(lower - self._template)
        own = lower + space.offsets(components @ self._matrix + self._constant)
        own = self._rest + expressiveness * (own - self._rest)
        share = ((space.opening(lower) - CLOSED_OPENING) / (OPEN_OPENING - CLOSED_OPENING)).clamp(0, 1)
        share = share.square() * (3 - 2 * share)  # smooth at both ends
        return lower + share[..., None, None] * (own - lower)

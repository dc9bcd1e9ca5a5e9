"""One frame's geometry in crop pixels: the posed face mesh and, around its jaw, a ring of extra triangles.

The ring leads from the contour of the jaw to a fixed distance beyond it, so that the neck follows a moving chin and
its motion dies out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.models.morphable import FACE_OVAL, LIPS_INNER, LIPS_OUTER, VERTICES, MorphableModel, project

CONTOUR = list(FACE_OVAL[8:29])  # from ear to ear, along the chin
SHAPE_VERTICES = VERTICES + 2 * len(CONTOUR)  # of the face, and the ring
RING_GROWTH = 1.4
BEHIND_PX = 1000.0  # the ring never hides the face
LIPS = np.array([*LIPS_OUTER, *LIPS_INNER])


@dataclass(frozen=True)
class Shape:
    """mesh [468 + ring, 3] float32 in crop pixels, canonical [468 + ring, 3] in model units without pose,
    rotation [3]."""

    mesh: np.ndarray
    canonical: np.ndarray
    rotation: np.ndarray

    @classmethod
    def posed(cls, vertices: Tensor, neutral: Tensor, pose: Tensor) -> Shape:
        """The shape of vertices [V, 3] in model units under pose [6]. neutral [V, 3]: the same person without
        expression; its jaw defines the ring."""
        centre = neutral[2]
        ring = centre + (neutral[CONTOUR] - centre) * RING_GROWTH
        canonical = torch.cat([vertices, vertices[CONTOUR], ring])
        mesh = project(canonical, pose)
        mesh[VERTICES:, 2] += BEHIND_PX
        return cls(mesh.numpy(), canonical.numpy(), pose[:3].numpy())

    @cached_property
    def lips(self) -> np.ndarray:
        """The canonical vertices of the lips, [40, 3]."""
        return self.canonical[LIPS]


def triangles(model: MorphableModel) -> np.ndarray:
    """The triangles [F, 3] of the face, then of the ring."""
    return np.concatenate([model.triangles.numpy(), _ring_triangles()])


def _ring_triangles() -> np.ndarray:
    """Between the copies of the contour (behind the 468 vertices) and the ring (behind the copies)."""
    inner = VERTICES + np.arange(len(CONTOUR))
    outer = inner + len(CONTOUR)
    first = np.column_stack([inner[:-1], inner[1:], outer[:-1]])
    second = np.column_stack([inner[1:], outer[1:], outer[:-1]])
    return np.concatenate([first, second])

"""The 3DMM: 468 vertices of the MediaPipe Face Mesh topology, linear in shape and expression (§3.1).

V(alpha, beta) = mean + B_shape alpha + B_expr beta, in units of the distance between the outer eye corners of
the mean face, x right, y down, z away from the camera. Coefficients are in standard deviations of the training
tracks. A pose is (rotation vector in radians [3], scale, translation [2]), weak perspective, with scale and
translation in widths of the 256 px crop, so that all six numbers are of order one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CROP_PX = 256
VERTICES = 468

LIPS_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIPS_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
# Points that speech does not move: forehead, temples, nose bridge, eye corners.
RIGID = (
    *(10, 151, 9, 8, 168, 6, 197, 195, 33, 133, 362, 263, 127, 356, 162, 389, 21, 251, 54, 284),
    *(103, 332, 67, 297, 109, 338),
)


def rotation_matrix(rotation: Tensor) -> Tensor:
    """Rotation vectors [..., 3] in radians to matrices [..., 3, 3] (exponential map)."""
    x, y, z = rotation.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


def project(vertices: Tensor, pose: Tensor) -> Tensor:
    """Weak perspective: vertices [..., V, 3] under pose [..., 6] to crop pixels [..., V, 3]; z is depth in pixels."""
    turned = vertices @ rotation_matrix(pose[..., :3]).transpose(-1, -2)
    scaled = turned * pose[..., 3, None, None]
    shift = torch.nn.functional.pad(pose[..., 4:6], (0, 1))[..., None, :]
    return (scaled + shift) * CROP_PX


def mouth_opening(vertices: Tensor) -> Tensor:
    """Height of the inner lips over three columns, vertices [..., V, 3] to [...], in model units."""
    upper, lower = vertices[..., (82, 13, 312), :], vertices[..., (87, 14, 317), :]
    return torch.linalg.vector_norm(upper - lower, dim=-1).mean(-1)


@dataclass(frozen=True)
class MorphableModel:
    """mean [V, 3], shape_basis [K_s, V, 3], expression_basis [K_e, V, 3], triangles [F, 3] int64 and for each of
    their corners a colour, codes [F, 3, 3] in [0, 1]; lower [V] bool marks the vertices that speech drives."""

    mean: Tensor
    shape_basis: Tensor
    expression_basis: Tensor
    triangles: Tensor
    codes: Tensor
    lower: Tensor

    def vertices(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """alpha [..., K_s], beta [..., K_e] to vertices [..., V, 3]."""
        return self.mean + self.shape(alpha) + self.expression(beta)

    def shape(self, alpha: Tensor) -> Tensor:
        """The shape part alone: offsets [..., V, 3]."""
        return (alpha @ self.shape_basis.flatten(1)).unflatten(-1, (-1, 3))

    def expression(self, beta: Tensor) -> Tensor:
        """The expression part alone: offsets [..., V, 3]."""
        return (beta @ self.expression_basis.flatten(1)).unflatten(-1, (-1, 3))

    def save(self, path: Path) -> None:
        """Write the model as safetensors, for `weights.load_face_model`."""
        save_file({name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}, path)

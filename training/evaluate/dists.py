"""DISTS (Ding et al. 2020): structure and texture similarity of two images on VGG16.

Its weights of channels are those of the package `dists-pytorch`, which itself would need torchvision and a download;
VGG16 is that of `training.renderer.lpips`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import WeightsError
from training.renderer.lpips import Features

EPSILON = 1e-6


def _stored() -> dict[str, Tensor]:
    package = importlib.util.find_spec("DISTS_pytorch")
    if package is None or not package.submodule_search_locations:
        raise WeightsError("dists-pytorch is not installed; run `pip install --no-deps dists-pytorch`")
    path = Path(package.submodule_search_locations[0]) / "weights.pt"
    stored: dict[str, Tensor] = torch.load(path, weights_only=True)
    return stored


class Dists(Features):
    """Distance of two images [B, 3, H, W] in [-1, 1], H and W at least 32: one number each, [B]."""

    def __init__(self) -> None:
        super().__init__("vgg16")
        weights = _stored()
        total = float((weights["alpha"] + weights["beta"]).sum())
        self.texture, self.structure = (weights[name].flatten() / total for name in ("alpha", "beta"))
        taper = torch.hann_window(5, periodic=False)[1:-1]
        self._kernel = torch.outer(taper, taper) / taper.sum() ** 2

    def pool(self, features: Tensor) -> Tensor:
        """Pooling without aliasing, of L2 norms."""
        kernel = self._kernel.expand(features.shape[1], 1, -1, -1)
        squared = functional.conv2d(features.square(), kernel, stride=2, padding=1, groups=features.shape[1])
        return (squared + 1e-12).sqrt()

    def compare(self, images: Tensor, truth: Tensor) -> Tensor:
        similarity, first = torch.zeros(len(images)), 0
        for a, b in zip(self._levels(images), self._levels(truth), strict=True):
            channels = slice(first, first := first + a.shape[1])
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            centred_a, centred_b = a - mean_a[..., None, None], b - mean_b[..., None, None]
            variance = centred_a.square().mean((2, 3)) + centred_b.square().mean((2, 3))
            covariance = (centred_a * centred_b).mean((2, 3))
            texture = (2 * mean_a * mean_b + EPSILON) / (mean_a.square() + mean_b.square() + EPSILON)
            structure = (2 * covariance + EPSILON) / (variance + EPSILON)
            similarity += texture @ self.texture[channels] + structure @ self.structure[channels]
        return 1 - similarity

    def _levels(self, images: Tensor) -> list[Tensor]:
        """The images in [0, 1] and the tapped layers."""
        return [(images + 1) / 2, *self(images)]

"""DISTS (Ding et al. 2020): distance of two images in structure and texture, with its published weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import WeightsError
from training.renderer.lpips import Features

CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image, and of the tapped layers
STABLE = 1e-6  # c1 and c2 of the paper


def _pooled(x: Tensor) -> Tensor:
    """L2 pooling with a Hann window (Hénaff and Simoncelli 2016), which aliases less than the network's own."""
    window = torch.hann_window(5, periodic=False)[1:-1]
    kernel = window[:, None] * window
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1, -1)
    return (functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _weights() -> tuple[Tensor, Tensor]:
    package = importlib.util.find_spec("DISTS_pytorch")
    if package is None or not package.submodule_search_locations:
        raise WeightsError(
            "dists-pytorch is not installed; run `pip install --no-deps dists-pytorch`, its weights are used"
        )
    stored = torch.load(Path(package.submodule_search_locations[0]) / "weights.pt", weights_only=True)
    return stored["alpha"].flatten(), stored["beta"].flatten()


class Dists(nn.Module):
    """Distance of two images [B, 3, H, W] in [-1, 1], H and W at least 64: one number each, [B]; 0 for equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self._features = Features("vgg16", pool=_pooled)
        alpha, beta = _weights()
        total = alpha.sum() + beta.sum()
        self._structure, self._texture = (beta / total).split(CHANNELS), (alpha / total).split(CHANNELS)

    @torch.inference_mode()
    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        similarity = torch.zeros(len(images))
        pairs = zip(self._maps(images), self._maps(truth), strict=True)
        for (x, y), texture, structure in zip(pairs, self._texture, self._structure, strict=True):
            mean_x, mean_y = x.mean(-1), y.mean(-1)
            covariance = (x * y).mean(-1) - mean_x * mean_y
            spread = x.var(-1, correction=0) + y.var(-1, correction=0)
            alike = (2 * mean_x * mean_y + STABLE) / (mean_x.square() + mean_y.square() + STABLE)
            similarity += alike @ texture + ((2 * covariance + STABLE) / (spread + STABLE)) @ structure
        return 1 - similarity

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The image in [0, 1] and the features, [B, C, h w] each."""
        return [x.flatten(2) for x in ((images + 1) / 2, *self._features(images))]

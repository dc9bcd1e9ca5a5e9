"""The three networks as graphs: functions of flat tensors with named, partly free axes, float32 at the border.

A network is exported, compiled for a GPU or captured as a CUDA graph in this form. Inside, the renderer's graph may
work in another precision. The others stay in float32: they are small, and the speech encoder's spectrum and the
geometry's state, which lives as long as a speech segment, need it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.models import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.morphable import VERTICES
from engine.models.renderer import CELL_PX, DIFFERENCE, DualAttentionRenderer, References, RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder

Precision = Literal["float32", "float16", "bfloat16"]
Axes = tuple[int | str, ...]  # fixed sizes and names of free ones; "4*rows" is four times the free axis "rows"


@dataclass(frozen=True)
class Span:
    """Range of a free axis; `usual` is the size that graphs are optimised for."""

    least: int
    usual: int
    most: int


SPANS = {
    "batch": Span(1, 8, 64),
    "rows": Span(4, RendererConfig.face_rows, 64),
    "columns": Span(4, RendererConfig.face_columns, 64),
    "lip_rows": Span(2, RendererConfig.lip_rows, 64),
    "lip_columns": Span(2, RendererConfig.lip_columns, 64),
    "lips": Span(1, 6, 8),
    "faces": Span(1, 5, 8),
}
USUAL = {name: span.usual for name, span in SPANS.items()}


def sizes(axes: Axes, free: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of `axes` with these sizes of the `free` axes."""
    return tuple(axis if isinstance(axis, int) else times(axis) * free[free_axis(axis)] for axis in axes)


def times(axis: str) -> int:
    """The factor of an axis: 4 of "4*rows"."""
    return int(axis.rpartition("*")[0] or 1)


def free_axis(axis: str) -> str:
    """The name of an axis without its factor: rows of "4*rows"."""
    return axis.rpartition("*")[2]


class Graph(nn.Module, ABC):
    """A network with `inputs` and `outputs` by name."""

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    inputs: dict[str, Axes]

    def __init__(self, network: nn.Module, precision: Precision):
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, precision)
        self.network = copy.deepcopy(network).to(self.dtype)

    @abstractmethod
    def example(self, free: Mapping[str, int]) -> tuple[Tensor, ...]:
        """Inputs like those of a conversation with the free axes of these sizes, on the CPU, always the same."""


class SpeechGraph(Graph):
    """`SpeechEncoder.forward`."""

    name = "speech"
    outputs = ("features",)

    def __init__(self, network: SpeechEncoder):
        super().__init__(network, "float32")
        self.inputs = {"windows": ("batch", network.config.window_samples)}

    def forward(self, windows: Tensor) -> tuple[Tensor]:
        return (self.network(windows),)

    def example(self, free: Mapping[str, int]) -> tuple[Tensor, ...]:
        return (0.05 * torch.randn(sizes(self.inputs["windows"], free), generator=_seeded()),)


class GeometryGraph(Graph):
    """`GeometryGenerator.step` for the frames of one speech window; the state's fields are inputs and outputs."""

    name = "geometry"
    outputs = ("lower", "next_keys", "next_values")

    def __init__(self, network: GeometryGenerator, frames: int):
        super().__init__(network, "float32")
        config, state = network.config, network.init_state(1)
        past: Axes = ("batch", *state.keys.shape[1:])
        self.inputs = {
            "features": ("batch", frames, config.features),
            "style": ("batch", config.width),
            "template": ("batch", VERTICES, 3),
            "keys": past,
            "values": past,
        }

    def forward(
        self, features: Tensor, style: Tensor, template: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        step = self.network.step
        lower, state = step(features, style, template, GeometryState(keys, values))  # type: ignore[operator]
        return lower, state.keys, state.values

    def example(self, free: Mapping[str, int]) -> tuple[Tensor, ...]:
        seeded = _seeded()
        return tuple(0.5 * torch.randn(sizes(axes, free), generator=seeded) for axes in self.inputs.values())


class RendererGraph(Graph):
    """`DualAttentionRenderer.forward`."""

    name = "renderer"
    outputs = ("pixels",)

    def __init__(self, network: DualAttentionRenderer, precision: Precision):
        super().__init__(network, precision)
        face, lip = ("rows", "columns"), ("lip_rows", "lip_columns")
        face_px, lip_px = (tuple(f"{CELL_PX}*{axis}" for axis in axes) for axes in (face, lip))
        self.inputs = {
            "pncc": ("batch", 3, *face_px),
            "lip_mask": ("batch", 1, *face),
            "lip_cell": ("batch", 2),
            "lip_pixels": ("batch", "lips", 3, *lip_px),
            "lip_difference": ("batch", "lips", DIFFERENCE, *lip),
            "face_pixels": ("batch", "faces", 3, *face_px),
            "face_difference": ("batch", "faces", DIFFERENCE, *face),
        }

    def forward(
        self,
        pncc: Tensor,
        lip_mask: Tensor,
        lip_cell: Tensor,
        lip_pixels: Tensor,
        lip_difference: Tensor,
        face_pixels: Tensor,
        face_difference: Tensor,
    ) -> tuple[Tensor]:
        lips = References(lip_pixels.to(self.dtype), lip_difference.to(self.dtype))
        faces = References(face_pixels.to(self.dtype), face_difference.to(self.dtype))
        pixels = self.network(pncc.to(self.dtype), lip_mask.to(self.dtype), lip_cell, lips, faces)
        return (pixels.float(),)

    def example(self, free: Mapping[str, int]) -> tuple[Tensor, ...]:
        seeded = _seeded()
        inputs: dict[str, Tensor] = {}
        for name, axes in self.inputs.items():
            shape = sizes(axes, free)
            if name.endswith("difference"):
                inputs[name] = 0.05 * torch.randn(shape, generator=seeded)
            else:
                low = -1 if name.endswith("pixels") else 0
                inputs[name] = low + (1 - low) * torch.rand(shape, generator=seeded)
        rows, columns = free["rows"] - free["lip_rows"], free["columns"] - free["lip_columns"]
        inputs["lip_cell"] = torch.tensor([[rows, columns // 2]]).repeat(free["batch"], 1)
        return tuple(inputs.values())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


NETWORKS = ("speech", "geometry", "renderer")


def load(name: str, precision: Precision, path: Path | None = None) -> Graph:
    """The graph of the network `name`, with the weights at `path` or the embedded ones; `precision` applies to the
    renderer. Raises WeightsError."""
    path = path or weights.default_path(name)
    if name == "speech":
        return SpeechGraph(weights.load(SpeechEncoder, SpeechConfig, path))
    if name == "geometry":
        speech = weights.load_config(SpeechConfig, weights.default_path("speech"))  # one step of it at a time
        return GeometryGraph(weights.load(GeometryGenerator, GeometryConfig, path), speech.step_frames)
    return RendererGraph(weights.load(DualAttentionRenderer, RendererConfig, path), precision)

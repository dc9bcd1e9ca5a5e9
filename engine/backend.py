"""What computes: the three networks behind one protocol, so that the rest of the engine does not know a device."""

from __future__ import annotations

from typing import Protocol

import cv2
import torch
from torch import Tensor

from engine import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.renderer import DualAttentionRenderer, References, RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder


class Backend(Protocol):
    """Batched, stateless calls; tensors are float32 on the CPU at this border. Shapes as in `engine.models`."""

    @property
    def speech_config(self) -> SpeechConfig: ...

    @property
    def renderer_config(self) -> RendererConfig: ...

    def hear(self, windows: Tensor) -> Tensor:
        """Speech windows [B, N] to features [B, step, D]."""

    def start(self, sessions: int) -> GeometryState:
        """The geometry before the first frame."""

    def move(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        """Features [B, T, D] to lower vertices [B, T, V_low, 3] and the next state."""

    def style(self, expression_vertices: Tensor) -> Tensor:
        """Expression-only vertices [B, T, V, 3] to S [B, D]."""

    def render(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        """`DualAttentionRenderer.forward`: face window [B, 3, H, W] in [-1, 1]."""


class TorchBackend:
    """The reference backend: eager PyTorch on the CPU."""

    def __init__(self, speech: SpeechEncoder, geometry: GeometryGenerator, renderer: DualAttentionRenderer):
        self._speech, self._geometry = speech, geometry
        self._renderer = renderer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def embedded(cls, threads: int = 1) -> TorchBackend:
        """With the weights that ship with the engine. Raises WeightsError.

        One thread is the default: a second one gains a sixth when the machine is idle, and more than halves the
        rate by busy waiting when a video encoder or a browser wants the other core (docs/latency.md).
        """
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        return cls(
            weights.load(SpeechEncoder, SpeechConfig, weights.default_path("speech")),
            weights.load(GeometryGenerator, GeometryConfig, weights.default_path("geometry")),
            weights.load(DualAttentionRenderer, RendererConfig, weights.default_path("renderer")),
        )

    @property
    def speech_config(self) -> SpeechConfig:
        return self._speech.config

    @property
    def renderer_config(self) -> RendererConfig:
        return self._renderer.config

    @torch.inference_mode()
    def hear(self, windows: Tensor) -> Tensor:
        features: Tensor = self._speech(windows)
        return features

    def start(self, sessions: int) -> GeometryState:
        return self._geometry.init_state(sessions)

    @torch.inference_mode()
    def move(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        return self._geometry.step(features, style, template, state)

    @torch.inference_mode()
    def style(self, expression_vertices: Tensor) -> Tensor:
        return self._geometry.style(expression_vertices)

    @torch.inference_mode()
    def render(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        pixels: Tensor = self._renderer(pncc, lip_mask, lip_cell, lips, faces)
        return pixels

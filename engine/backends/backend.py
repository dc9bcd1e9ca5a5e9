"""What computes: the three networks behind one protocol, so that the rest of the engine does not know a device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engine.config import Quality
from engine.models.geometry import GeometryState
from engine.models.renderer import References, RendererConfig
from engine.models.speech import SpeechConfig
from engine.paint.gpu.batch import BatchPainter


class RenderBackend(Protocol):
    """What a painter needs: batched, stateless; tensors are float32 on the CPU at this border."""

    def render(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        """`DualAttentionRenderer.forward`: face window [B, 3, H, W] in [-1, 1], or twice as fine."""


class Backend(RenderBackend, Protocol):
    """Batched, stateless calls; tensors are float32 on the CPU at this border. Shapes as in `engine.models`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def fallback(self) -> str:
        """Why this is not the faster backend that the machine seems to offer; empty where it is. Servers show it."""

    @property
    def quality(self) -> Quality:
        """In which one avatars are to be opened for it: `best` where it takes fine textures."""

    @property
    def speech_config(self) -> SpeechConfig: ...

    @property
    def windows(self) -> RendererConfig | None:
        """The sizes that all windows are to have, so that pictures can be painted in batches; None where small windows
        gain more than batches do."""

    @property
    def canvas(self) -> BatchPainter | None:
        """Where pictures are painted on the device itself; None where `engine.paint.painter` paints them on the CPU."""

    def encode_speech(self, windows: Tensor) -> Tensor:
        """Speech windows [B, N] to features [B, step, D]."""

    def initial_state(self, sessions: int) -> GeometryState:
        """The geometry before the first frame."""

    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        """Features [B, T, D] to lower vertices [B, T, V_low, 3] and the next state."""

    def style(self, expression_vertices: Tensor) -> Tensor:
        """Expression-only vertices [B, T, V, 3] to S [B, D]."""

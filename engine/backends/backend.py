"""`Backend`: the networks and the painting on one device; it hides the device from the rest of the engine.

`cpu.CpuBackend` and `cuda.CudaBackend` implement it; `select.backend_for` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.config import Level, Quality
from engine.models.geometry import GeometryState
from engine.models.morphable import MorphableModel
from engine.models.speech import SpeechConfig
from engine.paint.painter import FittedVideo, PicturePainter


class Backend(Protocol):
    """Batched, stateless calls; tensors are float32 on the CPU at this border. Shapes as in `engine.models`."""

    spare: Callable[[str], Backend] | None
    """With the reason as its `fallback`, the backend to use where this one cannot warm up; None: there is none, or the
    device was asked for by its name."""

    @property
    def device(self) -> torch.device: ...

    @property
    def fallback(self) -> str:
        """Why a faster backend that the machine seems to offer is not used, else empty. Servers show it."""

    @property
    def workers(self) -> int:
        """The number of threads that may call it at once; more than one only where that gains time."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of quality that pictures may have, the best first: one where the user has fixed it."""

    @property
    def quality(self) -> Quality:
        """The quality to open avatars in: `best` where 512 px crops can be painted."""

    @property
    def speech_config(self) -> SpeechConfig: ...

    def encode_speech(self, windows: Tensor) -> Tensor:
        """Speech windows [B, N] to features [B, step, D]."""

    def initial_state(self, sessions: int) -> GeometryState:
        """The geometry state of `sessions` before the first frame."""

    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        """Features [B, T, D] to lower vertices [B, T, V_low, 3] and the next state."""

    def style(self, expression_vertices: Tensor) -> Tensor:
        """Expression-only vertices [B, T, V, 3] to S [B, D]."""

    def painter(self, video: FittedVideo, bank: Bank, model: MorphableModel) -> PicturePainter:
        """A painter of one person, through this backend's renderer."""

    def lost(self) -> str:
        """After a call that raised: why no later one can succeed, else empty."""

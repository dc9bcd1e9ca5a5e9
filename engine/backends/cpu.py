"""The reference backend: eager PyTorch on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import cv2
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends.backend import Backend
from engine.config import FINE_LEVELS, LEVELS, Level, Quality, QualityOption
from engine.models import int8 as int8_layers
from engine.models import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.morphable import MorphableModel
from engine.models.renderer import DualAttentionRenderer, RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.paint.painter import CpuPainter, FittedVideo

WORKERS = 2  # more were not measured; the event loop and the encoders need a core too


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32 (AVX-512 BF16 or AMX)."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # also where a user limits it
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class CpuBackend:
    """`Backend` on the CPU: eager PyTorch, the reference for all others.

    bfloat16: compute the renderer's convolutions, and nothing else, in bfloat16: a third less time, 79 dB to
    float32.  workers: the number of threads that may call it at once.  windows: fixed sizes of all windows,
    as the GPU has them; None: as small as each picture allows.
    """

    def __init__(
        self,
        speech: SpeechEncoder,
        geometry: GeometryGenerator,
        renderer: DualAttentionRenderer,
        *,
        bfloat16: bool = False,
        workers: int = 1,
        windows: RendererConfig | None = None,
        fallback: str = "",
        quality: QualityOption = "auto",
    ):
        self._speech, self._geometry, self._bfloat16, self._windows = speech, geometry, bfloat16, windows
        self.device, self.fallback = torch.device("cpu"), fallback
        self.spare: Callable[[str], Backend] | None = None
        self.levels: tuple[Level, ...] = LEVELS if quality == "auto" else (quality,)
        self.quality: Quality = "best" if self.levels[0] in FINE_LEVELS else "fast"
        self.workers = workers
        self._renderer = renderer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def embedded(
        cls,
        threads: int = 1,
        windows: RendererConfig | None = None,
        fallback: str = "",
        quality: QualityOption = "auto",
        bfloat16: bool | None = None,
        int8: bool | None = None,
    ) -> CpuBackend:
        """With the weights that ship with the engine; bfloat16 by default where the processor has it, int8 in the
        layers of the speech encoder where PyTorch has it. Raises WeightsError.

        threads: of one call. One is the default: a second one gains a sixth on an idle machine, and more than halves
        the rate by busy waiting when a video encoder or a browser uses the other core (docs/latency.md). The other
        core gets a worker instead, which never waits for this one.
        """
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        speech = weights.load(SpeechEncoder, SpeechConfig, weights.default_path("speech"))
        return cls(
            speech.for_cpu(int8_layers.available() if int8 is None else int8),
            weights.load(GeometryGenerator, GeometryConfig, weights.default_path("geometry")),
            weights.load(DualAttentionRenderer, RendererConfig, weights.default_path("renderer")),
            bfloat16=native_bfloat16() if bfloat16 is None else bfloat16,
            workers=max(1, min(WORKERS, cores() // threads)),
            windows=windows,
            fallback=fallback,
            quality=quality,
        )

    @property
    def speech_config(self) -> SpeechConfig:
        return self._speech.config

    @torch.inference_mode()
    def encode_speech(self, windows: Tensor) -> Tensor:
        # One window at a time: windows of a batch would share the scales of int8, and gain nothing on a CPU.
        return torch.cat([self._speech(window) for window in windows.split(1)])

    def initial_state(self, sessions: int) -> GeometryState:
        return self._geometry.init_state(sessions)

    @torch.inference_mode()
    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        return self._geometry.step(features, style, template, state)

    @torch.inference_mode()
    def style(self, expression_vertices: Tensor) -> Tensor:
        return self._geometry.style(expression_vertices)

    def lost(self) -> str:
        return ""

    def painter(self, video: FittedVideo, bank: Bank, model: MorphableModel) -> CpuPainter:
        return CpuPainter(self, video, bank, model, self._windows)

    @torch.inference_mode()
    def attention(
        self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: Tensor, faces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`DualAttentionRenderer.attention`; the shares are float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            return self._renderer.attention(pncc, lip_mask, lip_cell, lips, faces)

    @torch.inference_mode()
    def residual(self, texture: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        """`DualAttentionRenderer.residual`, float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            return self._renderer.residual(texture, geometry, pncc).float()

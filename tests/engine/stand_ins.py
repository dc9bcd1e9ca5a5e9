"""Backends for tests: one that computes nothing, and one that notes what another is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.config import Level, Quality
from engine.models.geometry import GeometryConfig, GeometryState
from engine.models.morphable import MorphableModel
from engine.models.renderer import RendererConfig
from engine.models.speech import SpeechConfig
from engine.models.weights import load_face_model
from engine.paint.painter import CpuPainter, FittedVideo


class QuickBackend:
    """`Backend` without networks: lips lie at the origin, and a picture is its base frame.

    failure: raised where speech is to be encoded.  loss: why the device is lost.
    """

    device, fallback, workers = torch.device("cpu"), "", 1
    quality: Quality = "best"
    levels: tuple[Level, ...] = ("best",)
    speech_config = SpeechConfig()

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.spare: Callable[[str], Backend] | None = None
        self.loss = ""
        model = load_face_model()
        self.lip_vertices = len(model.mean[model.lower])

    def encode_speech(self, windows: Tensor) -> Tensor:
        if self.failure is not None:
            raise self.failure
        return torch.zeros(len(windows), self.speech_config.step_frames, 1)

    def initial_state(self, sessions: int) -> GeometryState:
        empty = torch.zeros(sessions, 1, 1, GeometryConfig().width)
        return GeometryState(empty, empty)

    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        return torch.zeros(*features.shape[:2], self.lip_vertices, 3), state

    def style(self, expression_vertices: Tensor) -> Tensor:
        return torch.zeros(len(expression_vertices), GeometryConfig().width)

    def lost(self) -> str:
        return self.loss

    def painter(self, video: FittedVideo, bank: Bank, model: MorphableModel) -> QuickPainter:
        return QuickPainter(video)


class QuickPainter:
    """`PicturePainter` of base frames."""

    gains_by_batches = False

    def __init__(self, video: FittedVideo) -> None:
        self.video = video

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        return self.video.read(index)

    def paint_together(
        self, batch: Sequence[tuple[QuickPainter, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        return [[painter.paint(*frame) for frame in frames] for painter, frames, _ in batch]


class NotingBackend:
    """`Backend` that passes everything on to a `CpuBackend` and notes the rows of each batch by network.

    windows: of the painters, as in `CpuBackend`.  note: called before each batch with the network's name.
    """

    def __init__(self, networks: CpuBackend, windows: RendererConfig | None = None) -> None:
        self.networks, self.windows = networks, windows
        self.spare, self.lost = networks.spare, networks.lost
        self.device, self.fallback, self.quality = networks.device, networks.fallback, networks.quality
        self.levels, self.workers = networks.levels[:1], 1  # batches are noted in their order
        self.speech_config = networks.speech_config
        self.initial_state, self.style = networks.initial_state, networks.style
        self.rows: defaultdict[str, list[int]] = defaultdict(list)
        self.note: Callable[[str], object] = lambda network: None

    def encode_speech(self, windows: Tensor) -> Tensor:
        self._note("speech", len(windows))
        return self.networks.encode_speech(windows)

    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        self._note("geometry", len(features))
        return self.networks.step_geometry(features, style, template, state)

    def painter(self, video: FittedVideo, bank: Bank, model: MorphableModel) -> CpuPainter:
        return CpuPainter(self, video, bank, model, self.windows)

    def attention(
        self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: Tensor, faces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._note("renderer", len(pncc))
        return self.networks.attention(pncc, lip_mask, lip_cell, lips, faces)

    def residual(self, texture: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        return self.networks.residual(texture, geometry, pncc)

    def _note(self, network: str, rows: int) -> None:
        self.rows[network].append(rows)
        self.note(network)

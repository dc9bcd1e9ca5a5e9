"""The settings of the engine and their defaults. Commands turn these dataclasses into command-line options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import tyro

from engine.errors import SettingError

MAX_EXPRESSIVENESS = 2.0
MAX_LOAD = 0.9  # share of the device's time; the rest is for work that arrives while a batch runs

Quality = Literal["best", "fast"]  # of references and pictures: large faces at 512 px, or all faces at 256 px
Level = Literal["best", "best-half", "fast", "fast-half"]  # half: the network paints every second picture
LEVELS: tuple[Level, ...] = get_args(Level)  # the best first
SINGLE: Mapping[Level, Level] = {"best-half": "best", "fast-half": "fast"}  # of levels with runs of two: for one alone
FINE_LEVELS: tuple[Level, ...] = ("best", "best-half")
QualityOption = Literal["auto", "best", "best-half", "fast", "fast-half"]
GpuMode = Literal["eager", "graphs", "tensorrt"]
GpuModeOption = Literal["auto"] | GpuMode


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """The device of the networks, and the resolution of their pictures."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N; auto: the first GPU that works and has room, else the CPU
    quality: QualityOption = "auto"
    """best: large faces at 512 px; fast: all at 256 px; -half: the network paints every second picture, the others are
    laid from it; auto: what the machine can paint in real time. A GPU has no -half."""
    gpu_mode: GpuModeOption = "auto"
    """How a GPU runs the networks: PyTorch, PyTorch's recorded CUDA graphs, or TensorRT; auto: what a check of this
    very card has shown to work, once for each driver and weights."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The windows of the speech encoder, in frames of 40 ms. Trained weights store theirs."""

    left_frames: int = 25  # 1 s of context, enough for the sounds around a syllable and the speaker's level
    step_frames: int = 4
    lookahead_frames: int = 3


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Speech, mouth and buffers of a session."""

    attack_frames: int = 3  # idle -> speech, in geometry: short, or the first syllable is lost
    crossfade_frames: int = 5  # speech -> idle, in geometry
    release_frames: int = 8  # silence through the networks after the last word, which closes the mouth
    lead_frames: int = 8  # pictures painted ahead of the frame that is due; bounds memory and the cost of a barge-in
    buffered_speech_ms: int = 30_000  # push_audio waits while this much is buffered
    expressiveness: Annotated[float, tyro.conf.arg(prefix_name=False)] = 1.0
    """How far the lips move: 1 as the speaker's do, 0 not at all, 2 twice as far. Closed lips stay closed."""

    def __post_init__(self) -> None:
        if not 0 <= self.expressiveness <= MAX_EXPRESSIVENESS:
            raise SettingError(f"--expressiveness {self.expressiveness:g}: expected 0 to {MAX_EXPRESSIVENESS:g}")

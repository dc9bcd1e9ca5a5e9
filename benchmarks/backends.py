"""Our renderer through every mode of a device: its speed, its share of the device's arithmetic ceiling, the lateness of
many sessions, and memory. Prints a table, writes JSON on request, and on a GPU remembers whether TensorRT is faster.

    python -m benchmarks.backends SPEAKER.avatar [--device cuda] [--json FILE]
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.measure import gflop, repeated
from engine.avatar.avatar import Avatar
from engine.backends import graphs, selfcheck
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.graphs import Precision
from engine.backends.select import choose, describe, first_line
from engine.backends.tensorrt.runner import open_backend
from engine.commands.bench import speech_of
from engine.commands.capacity import measure_sessions
from engine.config import GpuMode
from engine.errors import PersonaStreamError, PlanError
from engine.live.engine import Engine
from engine.live.pipeline import AvatarPipeline, Work
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import Runner

MODES: tuple[GpuMode, ...] = ("eager", "graphs", "tensorrt")
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
CLEARLY_FASTER = 1.05  # pictures a second of TensorRT over recorded graphs, to be worth its plans


@dataclass(frozen=True)
class Speed:
    """One mode at one batch size. The network alone, from inputs on the device: ms, frames a second, TFLOP/s and their
    share of the ceiling. Whole pictures, from lips to frames on the CPU: frames a second."""

    batch: int
    ms_per_batch: float
    network_fps: float
    tflops: float
    share_of_ceiling: float
    picture_fps: float


@dataclass(frozen=True)
class Report:
    """One mode. p99_late_ms: by the number of sessions that talk.  memory_mb: the most on the device.  failure: why the
    mode is not available here."""

    mode: GpuMode
    speeds: tuple[Speed, ...] = ()
    p99_late_ms: dict[int, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Backends:
    """Measure our renderer through every backend of a device."""

    avatar: tyro.conf.Positional[Path]
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    modes: tuple[GpuMode, ...] = MODES
    """Modes to measure; a CPU has only `eager`."""
    precision: Precision | None = None
    """Precision of the renderer; by default float16 on a GPU and float32 on a CPU."""
    batch: tuple[int, ...] = (1, 8, 32, 64)
    seconds: float = 1.0
    """Duration of each measurement."""
    sessions: tuple[int, ...] = (16, 32, 64)
    """Numbers of sessions that talk at once."""
    speech_s: float = 4.0
    """Length of each session's speech, 2 at least."""
    json: Path | None = None
    """File for the figures."""

    def run(self) -> None:
        device = choose(self.device).device
        precision = self.precision or ("float16" if device.type == "cuda" else "float32")
        ceiling = matmul_tflops(device, precision, self.seconds)
        title = f"{describe(device)}, {precision}; a product of matrices reaches {ceiling:.2f} TFLOP/s"
        reports = []
        for mode in self.modes if device.type == "cuda" else self.modes[:1]:
            reports.append(self._measure(mode, device, precision, ceiling))
            # The figures are printed at once: a later mode may end the process.
            print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
        Console().print(table(reports, title))
        if device.type == "cuda" and (choice := fastest(reports)) is not None:
            selfcheck.remember(device, choice)
            print(f"--gpu-mode auto is {choice.mode} from now on: {choice.reason}")
        if self.json is not None:
            facts = {
                "device": describe(device),
                "instruction_set": torch.backends.cpu.get_cpu_capability(),
                "precision": precision,
                "torch": torch.__version__,
                "matmul_tflops": ceiling,
                "modes": [dataclasses.asdict(report) for report in reports],
            }
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(facts, indent=2) + "\n")

    def _measure(self, mode: GpuMode, device: torch.device, precision: Precision, ceiling: float) -> Report:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            backend, runner = open_mode(mode, device, precision)
            speeds = tuple(self._speed(size, backend, runner, device, ceiling) for size in self.batch)
        except (PersonaStreamError, RuntimeError) as error:
            return Report(mode, failure=first_line(error))
        late = asyncio.run(self._lateness(backend)) if self.sessions else {}
        memory_mb = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else 0.0
        return Report(mode, speeds, late, memory_mb)

    async def _lateness(self, backend: Backend) -> dict[int, float]:
        pcm = speech_of(None, self.speech_s)
        avatars = {"avatar": self.avatar}
        async with Engine(avatars, max_sessions=max(self.sessions), backend=backend, max_load=math.inf) as engine:
            steps = [await measure_sessions(engine, count, 1, pcm) for count in self.sessions]
        return {step.sessions: step.p99_late_ms for step in steps}

    def _speed(self, batch: int, backend: Backend, runner: Runner, device: torch.device, ceiling: float) -> Speed:
        graph = graphs.load("renderer", "float32")
        example = graph.example({**graphs.USUAL, "batch": batch})
        inputs = [tensor.to(device) for tensor in example]
        taken_s = statistics.median(repeated(lambda: runner(*inputs), device, self.seconds))
        arithmetic = gflop(graph, graph.example({**graphs.USUAL, "batch": 1}))
        tflops = arithmetic * batch / taken_s / 1000
        pipeline = AvatarPipeline(backend, Avatar.open(self.avatar, quality=backend.quality), load_face_model())
        frames = map(pipeline.avatar.loop.frame_at, itertools.count())

        def paint() -> None:
            base = next(frames)  # sessions of an avatar are at the same place of its loop
            jobs = [pipeline.paint_job(base, pipeline.rest) for _ in range(batch)]
            pipeline.perform_all([Work(pipeline, job) for job in jobs])

        painted_s = statistics.median(repeated(paint, device, self.seconds))
        return Speed(batch, 1000 * taken_s, batch / taken_s, tflops, tflops / ceiling, batch / painted_s)


def open_mode(mode: GpuMode, device: torch.device, precision: Precision) -> tuple[Backend, Runner]:
    """A backend and its renderer on the device. Raises DeviceError, WeightsError; PlanError where TensorRT cannot be
    used."""
    if device.type == "cpu":
        return CpuBackend.embedded(quality="fast"), graphs.load("renderer", precision).eval()
    backend = open_backend(device, mode, "fast", precision)
    if backend.fallback:
        raise PlanError(backend.fallback)
    return backend, backend.batch_painter.renderer


def fastest(reports: Sequence[Report]) -> selfcheck.Verdict | None:
    """TensorRT or recorded graphs, by the pictures a second of the largest batch; None where only one was measured."""
    fps = {report.mode: report.speeds[-1].picture_fps for report in reports if report.speeds}
    if not {"graphs", "tensorrt"} <= fps.keys():
        return None
    gain = fps["tensorrt"] / fps["graphs"]
    mode: GpuMode = "tensorrt" if gain >= CLEARLY_FASTER else "graphs"
    return selfcheck.Verdict(mode, f"TensorRT paints {gain:.2f} times as many pictures a second as recorded graphs")


def matmul_tflops(device: torch.device, precision: Precision, seconds: float) -> float:
    """The TFLOP/s that the device reaches in a large matrix product: no network reaches more."""
    size = MATMUL_SIZE[device.type]
    one, two = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    return matmul_flop(size) / statistics.median(repeated(lambda: one @ two, device, seconds)) / 1e12


def matmul_flop(size: int) -> int:
    """Multiplications and additions of the product of two [size, size] matrices."""
    return 2 * size**3


def table(reports: list[Report], title: str) -> Table:
    columns = (
        "mode",
        "batch",
        "ms / batch",
        "network fps",
        "TFLOP/s",
        "of the ceiling",
        "picture fps",
        "p99 late ms",
        "MB",
    )
    rows = Table(*columns, title=title)
    for report in reports:
        late = ", ".join(f"{count}: {ms:.0f}" for count, ms in report.p99_late_ms.items())
        if report.failure:
            rows.add_row(report.mode, *[""] * (len(columns) - 2), report.failure)
        for i, s in enumerate(report.speeds):
            numbers = (f"{s.ms_per_batch:.2f}", f"{s.network_fps:.0f}", f"{s.tflops:.2f}", f"{s.share_of_ceiling:.0%}")
            whole = ("", "", "") if i else (report.mode, late, f"{report.memory_mb:.0f}")
            rows.add_row(whole[0], str(s.batch), *numbers, f"{s.picture_fps:.0f}", *whole[1:])
    return rows


if __name__ == "__main__":
    command.run(Backends, "python -m benchmarks.backends")

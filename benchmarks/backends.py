"""Our renderer through every backend of a device: its speed, its share of the device's arithmetic ceiling, and the
number of sessions it serves. Prints a table, and writes JSON on request.

    python -m benchmarks.backends SPEAKER.avatar [--device cuda] [--json FILE]
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.measure import gflop, repeated
from engine.avatar.avatar import Avatar
from engine.backends import graphs
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.cuda import CudaBackend
from engine.backends.graphs import Precision
from engine.backends.select import choose, describe
from engine.backends.tensorrt.runner import TensorRTBackend
from engine.commands.bench import speech_of
from engine.commands.capacity import ramp
from engine.errors import DeviceError, ExportError, PlanError
from engine.live.pipeline import AvatarPipeline, Work
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import Runner

Mode = Literal["eager", "compile", "graphs", "tensorrt"]
MODES: tuple[Mode, ...] = ("eager", "compile", "graphs", "tensorrt")
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}


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
    """One mode. `failure`: why it is not available here; `sessions`: the largest number with a p99 lateness below a
    frame."""

    mode: Mode
    speeds: tuple[Speed, ...] = ()
    sessions: int | None = None
    p99_late_ms: float | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Backends:
    """Measure our renderer through every backend of a device."""

    avatar: tyro.conf.Positional[Path]
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    modes: tuple[Mode, ...] = MODES
    """Modes to measure; a CPU has only `eager`."""
    precision: Precision | None = None
    """Precision of the renderer; by default float16 on a GPU and float32 on a CPU."""
    batch: tuple[int, ...] = (1, 8, 32)
    seconds: float = 3.0
    """Duration of each measurement."""
    speech_s: float = 5.0
    """Length of each session's speech; 0: the number of sessions is not measured."""
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

    def _measure(self, mode: Mode, device: torch.device, precision: Precision, ceiling: float) -> Report:
        try:
            backend, runner = open_mode(mode, device, precision)
        except (PlanError, ExportError, DeviceError) as error:
            return Report(mode, failure=str(error))
        speeds = tuple(self._speed(size, backend, runner, device, ceiling) for size in self.batch)
        if not self.speech_s:
            return Report(mode, speeds)
        capacity = asyncio.run(ramp(self.avatar, speech_of(None, self.speech_s), backend))
        late = {step.sessions: step.p99_late_ms for step in capacity["steps"]}
        return Report(mode, speeds, capacity["sessions"], late.get(capacity["sessions"]))

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
            jobs = [pipeline.paint_job(next(frames), pipeline.rest) for _ in range(batch)]
            pipeline.perform_all([Work(pipeline, job) for job in jobs])

        painted_s = statistics.median(repeated(paint, device, self.seconds))
        return Speed(batch, 1000 * taken_s, batch / taken_s, tflops, tflops / ceiling, batch / painted_s)


def open_mode(mode: Mode, device: torch.device, precision: Precision) -> tuple[Backend, Runner]:
    """A backend and its renderer on the device. Raises PlanError, ExportError, DeviceError, WeightsError."""
    if device.type == "cpu":
        return CpuBackend.embedded(quality="fast"), graphs.load("renderer", precision).eval()
    if mode == "tensorrt":
        backend: CudaBackend = TensorRTBackend.embedded(device, precision)
    else:
        backend = CudaBackend.through_torch(device, mode, precision)
    return backend, backend.batch_painter.renderer


def matmul_tflops(device: torch.device, precision: Precision, seconds: float) -> float:
    """The TFLOP/s that the device reaches in a large matrix product: no network reaches more."""
    size = MATMUL_SIZE[device.type]
    one, two = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    return matmul_flop(size) / statistics.median(repeated(lambda: one @ two, device, seconds)) / 1e12


def matmul_flop(size: int) -> int:
    """Multiplications and additions of the product of two [size, size] matrices."""
    return 2 * size**3


def table(reports: list[Report], title: str) -> Table:
    columns = ("mode", "batch", "ms / batch", "network fps", "TFLOP/s", "of the ceiling", "picture fps", "sessions")
    rows = Table(*columns, title=title)
    for report in reports:
        if report.failure:
            rows.add_row(report.mode, "", "", "", "", "", "", report.failure)
        for i, s in enumerate(report.speeds):
            sessions = "" if i or report.sessions is None else str(report.sessions)
            numbers = (f"{s.ms_per_batch:.2f}", f"{s.network_fps:.0f}", f"{s.tflops:.2f}", f"{s.share_of_ceiling:.0%}")
            rows.add_row("" if i else report.mode, str(s.batch), *numbers, f"{s.picture_fps:.0f}", sessions)
    return rows


if __name__ == "__main__":
    command.run(Backends, "python -m benchmarks.backends")

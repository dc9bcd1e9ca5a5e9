"""Our renderer in every way that a device can run it: how fast, how near to what the device multiplies at its best, and
for how many sessions. A table, and JSON on request.

    python -m benchmarks.ways SPEAKER.avatar [--device cuda] [--json FILE]
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
from engine.live.job import PaintJob
from engine.live.pipeline import AvatarPipeline, Work
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import Runner

Way = Literal["eager", "compile", "graphs", "tensorrt"]
WAYS: tuple[Way, ...] = ("eager", "compile", "graphs", "tensorrt")
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Speed:
    """Of one way at one batch size. The network alone, from inputs on the device: ms and frames a second, and the share
    of the `ceiling` that its arithmetic is. Whole pictures, from lips to frames on the CPU: frames a second."""

    batch: int
    ms_per_batch: float
    network_fps: float
    tflops: float
    share_of_ceiling: float
    picture_fps: float


@dataclass(frozen=True)
class Report:
    """Of one way. `failure`: why it could not be had here; `sessions`: with a p99 of lateness below a frame."""

    way: Way
    speeds: tuple[Speed, ...] = ()
    sessions: int | None = None
    p99_late_ms: float | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Ways:
    """Measure our renderer in every way that this device can run it."""

    avatar: tyro.conf.Positional[Path]
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    ways: tuple[Way, ...] = WAYS
    """On a CPU there is `eager` alone."""
    precision: Precision | None = None
    """Of the renderer; float16 on a GPU and float32 on a CPU where none is named."""
    batch: tuple[int, ...] = (1, 8, 32)
    seconds: float = 3.0
    """For every figure."""
    speech_s: float = 5.0
    """What each session says; 0: sessions are not tried."""
    json: Path | None = None
    """Where to write the figures."""

    def run(self) -> None:
        device = choose(self.device).device
        precision = self.precision or ("float16" if device.type == "cuda" else "float32")
        ceiling = matmul_tflops(device, precision, self.seconds)
        title = f"{describe(device)}, {precision}; a product of matrices reaches {ceiling:.2f} TFLOP/s"
        reports = []
        for way in self.ways if device.type == "cuda" else self.ways[:1]:
            reports.append(self._measure(way, device, precision, ceiling))
            # What was measured stays if the next one ends it.
            print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
        Console().print(table(reports, title))
        if self.json is not None:
            facts = {
                "device": describe(device),
                "precision": precision,
                "torch": torch.__version__,
                "matmul_tflops": ceiling,
                "ways": [dataclasses.asdict(report) for report in reports],
            }
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(facts, indent=2) + "\n")

    def _measure(self, way: Way, device: torch.device, precision: Precision, ceiling: float) -> Report:
        try:
            backend, runner = open_way(way, device, precision)
        except (PlanError, ExportError, DeviceError) as error:
            return Report(way, failure=str(error))
        speeds = tuple(self._speed(size, backend, runner, device, ceiling) for size in self.batch)
        if not self.speech_s:
            return Report(way, speeds)
        found = asyncio.run(ramp(self.avatar, speech_of(None, self.speech_s), backend))
        late = {step.sessions: step.p99_late_ms for step in found["steps"]}
        return Report(way, speeds, found["sessions"], late.get(found["sessions"]))

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
            jobs = [PaintJob(next(frames), pipeline.rest, 0, 0) for _ in range(batch)]
            pipeline.perform_all([Work(pipeline, job) for job in jobs])

        painted_s = statistics.median(repeated(paint, device, self.seconds))
        return Speed(batch, 1000 * taken_s, batch / taken_s, tflops, tflops / ceiling, batch / painted_s)


def open_way(way: Way, device: torch.device, precision: Precision) -> tuple[Backend, Runner]:
    """A backend and its renderer on the device. Raises PlanError, ExportError, DeviceError, WeightsError."""
    if device.type == "cpu":
        return CpuBackend.embedded(quality="fast"), graphs.load("renderer", precision).eval()
    if way == "tensorrt":
        backend: CudaBackend = TensorRTBackend.embedded(device, precision)
    else:
        backend = CudaBackend.through_torch(device, way, precision)
    return backend, backend.batch_painter.renderer


def matmul_tflops(device: torch.device, precision: Precision, seconds: float) -> float:
    """What the device reaches with a large product of matrices: no network comes above it."""
    size = MATMUL_SIZE[device.type]
    one, two = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / statistics.median(repeated(lambda: one @ two, device, seconds)) / 1e12


def table(reports: list[Report], title: str) -> Table:
    columns = ("way", "batch", "ms / batch", "network fps", "TFLOP/s", "of the ceiling", "picture fps", "sessions")
    made = Table(*columns, title=title)
    for report in reports:
        if report.failure:
            made.add_row(report.way, "", "", "", "", "", "", report.failure)
        for i, s in enumerate(report.speeds):
            sessions = "" if i or report.sessions is None else str(report.sessions)
            numbers = (f"{s.ms_per_batch:.2f}", f"{s.network_fps:.0f}", f"{s.tflops:.2f}", f"{s.share_of_ceiling:.0%}")
            made.add_row("" if i else report.way, str(s.batch), *numbers, f"{s.picture_fps:.0f}", sessions)
    return made


if __name__ == "__main__":
    command.run(Ways, "python -m benchmarks.ways")

"""The commands that need no network: dub a file, measure this machine, say what works on it, export the networks."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.backend import Backend
from engine.bench import Figures, bench, speech_of
from engine.chart import check_chart, draw_ramp
from engine.config import ComputeConfig
from engine.device import backend_for
from engine.doctor import examine
from engine.dub import dub
from engine.export import export_all
from engine.graphs import Precision
from engine.media import FPS
from engine.ramp import Ramp, ramp


@dataclass(frozen=True, kw_only=True)
class Dub:
    """Speak a sound file with an avatar, offline: the engine and the pictures are those of a live session."""

    avatar: tyro.conf.Positional[Path]
    speech: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.mp4")
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)

    def run(self) -> int:
        began = time.perf_counter()
        frames = dub(self.avatar, self.speech, self.output, backend_for(self.compute.device, self.compute.quality))
        print(f"{self.output}: {frames / FPS:.1f} s of video in {time.perf_counter() - began:.1f} s")
        return 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure what every stage costs on this machine with this avatar."""

    avatar: tyro.conf.Positional[Path]
    speech: Path | None = None
    """Speech to drive it with; noise where none is given."""
    seconds: float = 10.0
    sessions: bool = False
    """Let more and more sessions speak at once as well, until 1 % of their pictures come too late."""
    json: bool = False
    """Print one JSON object instead of tables."""
    plot: Path | None = None
    """Draw load and lateness against sessions into this picture (.png, .svg, .pdf); means --sessions."""
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)

    def run(self) -> int:
        if self.plot:
            check_chart(self.plot)
        backend = backend_for(self.compute.device, self.compute.quality)
        figures = bench(self.avatar, self.speech, self.seconds, backend)
        found = self._ramp(backend) if self.sessions or self.plot else None
        if self.plot and found:
            draw_ramp(found, figures["device"], self.plot)
        if self.json:
            steps = {} if found is None else found | {"steps": [asdict(step) for step in found["steps"]]}
            print(json.dumps(figures | steps, indent=2))
            return 0
        _tell(figures)
        if found is not None:
            _tell_ramp(found)
        return 0

    def _ramp(self, backend: Backend) -> Ramp:
        return asyncio.run(ramp(self.avatar, speech_of(self.speech, self.seconds), backend))


def _tell(figures: Figures) -> None:
    table = Table("stage", "p50 ms", "p99 ms", title=f"{figures['device']}, {figures['threads']} threads")
    for stage, (median, worst) in figures["stage_ms"].items():
        table.add_row(stage, f"{median:.1f}", f"{worst:.1f}")
    Console().print(table)
    if figures["fallback"]:
        print(f"no faster device: {figures['fallback']}")
    print(f"{figures['fps']:.1f} new pictures a second, {figures['memory_mb']:.0f} MB at the most")
    print(f"one avatar more takes {figures['avatar_mb']:.0f} MB, one session {figures['session_mb']:.0f} MB")
    latency = f"after the first {figures['algorithmic_ms']} ms of speech"
    print(f"first frame {figures['first_frame_ms']:.0f} ms (p95) {latency}")


def _tell_ramp(found: Ramp) -> None:
    table = Table("sessions", "load", "p50 late ms", "p99 late ms")
    for step in found["steps"]:
        table.add_row(f"{step.sessions}", f"{step.load:.0%}", f"{step.p50_late_ms:.1f}", f"{step.p99_late_ms:.1f}")
    Console().print(table)
    print(f"{found['sessions']} sessions with a p99 below {found['deadline_ms']:.0f} ms")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what works on this machine, and what to do about the rest."""

    def run(self) -> int:
        findings = list(examine())
        table = Table("", "what", "found", "to do")
        for finding in findings:
            table.add_row("ok" if finding.ok else "[red]no", finding.name, finding.detail, finding.remedy)
        Console().print(table)
        return 0 if all(finding.ok for finding in findings) else 1


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the networks as ONNX files for other runtimes, and say how closely those answer as torch does."""

    out: Path
    """The folder; it is made where there is none."""
    precision: Precision = "float32"
    """That of the renderer; the others stay in float32."""

    def run(self) -> int:
        table = Table("file", "MB", "dB to torch", title=f"ONNX, {self.precision}")
        for made in export_all(self.out, self.precision):
            table.add_row(str(made.path), f"{made.size_bytes / 1e6:.1f}", f"{made.psnr_db:.0f}")
        Console().print(table)
        return 0

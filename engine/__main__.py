"""The commands that need no network: dub a file, measure this machine, say what works on it, export the networks."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.bench import bench, speech_of
from engine.doctor import examine
from engine.dub import dub
from engine.export import export_all
from engine.graphs import Precision
from engine.media import FPS
from engine.ramp import ramp


@dataclass(frozen=True, kw_only=True)
class Dub:
    """Speak a sound file with an avatar, offline: the engine and the pictures are those of a live session."""

    avatar: tyro.conf.Positional[Path]
    speech: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.mp4")

    def run(self) -> int:
        began = time.perf_counter()
        frames = dub(self.avatar, self.speech, self.output)
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
    """Let more and more sessions speak at once, until 1 % of their pictures come too late."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        return self._many() if self.sessions else self._one()

    def _many(self) -> int:
        found = asyncio.run(ramp(self.avatar, speech_of(self.speech, self.seconds)))
        if self.json:
            print(json.dumps(found | {"steps": [asdict(step) for step in found["steps"]]}, indent=2))
            return 0
        table = Table("sessions", "load", "p50 late ms", "p99 late ms")
        for step in found["steps"]:
            table.add_row(f"{step.sessions}", f"{step.load:.0%}", f"{step.p50_late_ms:.1f}", f"{step.p99_late_ms:.1f}")
        Console().print(table)
        print(f"{found['sessions']} sessions with a p99 below {found['deadline_ms']:.0f} ms")
        return 0

    def _one(self) -> int:
        figures = bench(self.avatar, self.speech, self.seconds)
        if self.json:
            print(json.dumps(figures, indent=2))
            return 0
        table = Table("stage", "p50 ms", "p99 ms", title=f"{figures['device']}, {figures['threads']} threads")
        for stage, (median, worst) in figures["stage_ms"].items():
            table.add_row(stage, f"{median:.1f}", f"{worst:.1f}")
        Console().print(table)
        print(f"{figures['fps']:.1f} new pictures a second, {figures['memory_mb']:.0f} MB at the most")
        latency = f"after the first {figures['algorithmic_ms']} ms of speech"
        print(f"first frame {figures['first_frame_ms']:.0f} ms (p95) {latency}")
        return 0


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

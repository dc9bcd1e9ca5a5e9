"""The command `personastream bench`: the cost of every stage on this machine, and their joint speed."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from engine.audio import float_to_pcm, read_speech
from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.select import backend_for, describe
from engine.commands.cadence import cadence
from engine.commands.capacity import Ramp, check_chart, draw_ramp, print_ramp, ramp
from engine.config import ComputeConfig, Level, SessionConfig
from engine.errors import SettingError
from engine.live.job import PaintJob
from engine.live.pipeline import AvatarPipeline
from engine.live.quality import Pace
from engine.live.trace import Tracer
from engine.media import FPS, SAMPLE_RATE_HZ
from engine.metrics import StageTimes
from engine.models.weights import load_face_model

TRIALS = 10
MIN_S, MAX_S = 2.0, 3600.0  # shorter speech has too few windows for percentiles; longer speech only fills the memory
WEIGHED = 4  # sessions opened to measure the memory of one
PAGE_BYTES = resource.getpagesize()


class Figures(TypedDict):
    """level: of the pictures.  fps: new pictures a second through all stages, on all workers.  first_frame_ms: p95 from
    the arrival of the speech that the first frame needs (`algorithmic_ms`) to its picture.  stage_ms: p50 and p99 of
    each stage.

    memory_mb: the peak of the process.  avatar_mb, session_mb: of a further avatar, and of a further talking session.
    device_mb, device_avatar_mb: memory on the GPU of the process and of a further avatar, 0 on a CPU.  fallback: why a
    faster device that the machine seems to offer is not used."""

    device: str
    fallback: str
    threads: int
    workers: int
    level: Level
    fps: float
    first_frame_ms: float
    algorithmic_ms: int
    sessions_at_25_fps: int
    memory_mb: float
    avatar_mb: float
    session_mb: float
    device_mb: float
    device_avatar_mb: float
    stage_ms: dict[str, tuple[float, float]]


def bench(avatar: Path, speech: Path | None, seconds: float, backend: Backend | None = None) -> Figures:
    """Let `avatar` speak `speech`, by default noise, which costs the same, for `seconds`, as fast as possible.

    Raises SettingError for `seconds` outside 2 to 3600; AvatarFileError, SpeechFormatError, WeightsError."""
    pcm = speech_of(speech, seconds)
    backend = backend or CpuBackend.embedded()
    first = _ready(backend, avatar)  # loads libraries, compiles and warms up; a second avatar needs none of this
    before = resident_mb(), _device_mb(backend)
    pipeline = _ready(backend, avatar)
    avatar_mb, device_avatar_mb = resident_mb() - before[0], _device_mb(backend) - before[1]
    del first
    session_mb = _session_mb(pipeline, pcm)
    pipeline.times = StageTimes()
    began = time.perf_counter()
    frames = sum(1 for _ in pipeline.speak(pcm))
    fps = frames / (time.perf_counter() - began)
    times, latency_ms = pipeline.times, backend.speech_config.algorithmic_latency_ms
    first_s = [_first_frame_s(pipeline, pcm, latency_ms) for _ in range(TRIALS)]
    return Figures(
        device=describe(backend.device),
        fallback=backend.fallback,
        threads=torch.get_num_threads(),
        workers=backend.workers,
        level=pipeline.level,
        fps=fps,
        first_frame_ms=float(np.percentile(first_s, 95)) * 1000,
        algorithmic_ms=latency_ms,
        sessions_at_25_fps=int(fps // FPS),
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        avatar_mb=avatar_mb,
        session_mb=session_mb,
        device_mb=_device_mb(backend),
        device_avatar_mb=device_avatar_mb,
        stage_ms={s: (times.percentile_ms(s, 50), times.percentile_ms(s, 99)) for s in times.stages},
    )


def _ready(backend: Backend, avatar: Path) -> AvatarPipeline:
    """A pipeline that has painted a picture."""
    pipeline = AvatarPipeline(backend, Avatar.open(avatar, quality=backend.quality), load_face_model())
    pipeline.perform(pipeline.paint_job(pipeline.avatar.loop.start, pipeline.rest))
    return pipeline


def resident_mb() -> float:
    """The resident memory of this process, on Linux, after the interpreter and the C library have freed theirs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def _device_mb(backend: Backend) -> float:
    """The memory of tensors on the GPU."""
    return torch.cuda.memory_allocated(backend.device) / 2**20 if backend.device.type == "cuda" else 0.0


def _session_mb(pipeline: AvatarPipeline, pcm: np.ndarray) -> float:
    """The memory of a talking session with all the pictures painted ahead."""
    before = resident_mb()
    timelines = [pipeline.new_timeline(SessionConfig()) for _ in range(WEIGHED)]
    for timeline in timelines:
        timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
        timeline.push_audio("speech", pcm.tobytes())
        while (job := timeline.take(timeline.next_frame, 0, Pace(pipeline.level))) is not None:
            timeline.finish(job, pipeline.perform(job), lead=0)
    return (resident_mb() - before) / len(timelines)


def speech_of(path: Path | None, seconds: float) -> np.ndarray:
    """The sound file, or noise, cut or repeated to `seconds`: int16 [N] at 48 kHz. Raises SettingError for less than
    2 s or more than 3600 s, SpeechFormatError."""
    if not MIN_S <= seconds <= MAX_S:
        raise SettingError(f"--seconds {seconds:g}: expected {MIN_S:g} to {MAX_S:g}; the default is 10")
    samples = round(seconds * SAMPLE_RATE_HZ)
    if path is None:
        return float_to_pcm(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32))
    return np.resize(read_speech(path), samples)


def _first_frame_s(pipeline: AvatarPipeline, pcm: np.ndarray, latency_ms: int) -> float:
    """Seconds from pushing the first `latency_ms` of speech to the first picture with moving lips."""
    timeline = pipeline.new_timeline(SessionConfig())
    timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    needed_ms = latency_ms + 10  # and the delay of the resampler
    began = time.perf_counter()
    timeline.push_audio("speech", pcm[: needed_ms * SAMPLE_RATE_HZ // 1000].tobytes())
    while True:
        job = timeline.take(timeline.next_frame, 0, Pace(pipeline.level))
        if job is None:
            timeline.emit()
            continue
        timeline.finish(job, pipeline.perform(job), lead=0)
        if isinstance(job, PaintJob):
            return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the cost of every stage with this avatar on this machine."""

    avatar: tyro.conf.Positional[Path]
    speech: Path | None = None
    """Sound file that the avatar speaks; noise by default, which costs the same."""
    seconds: float = 10.0
    """Length of the speech: 2 to 3600."""
    sessions: bool = False
    """Also find the number of sessions that can speak at once before 1 % of their pictures are late, the same where a
    fifth of them speaks, and the cost of silent sessions."""
    json: bool = False
    """Print one JSON object instead of tables."""
    trace: Path | None = None
    """File for a trace of the live session (Chrome's trace events, for ui.perfetto.dev)."""
    plot: Path | None = None
    """Picture file (.png, .svg, .pdf) for a chart of load and lateness against sessions; implies --sessions."""
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)

    def run(self) -> int:
        if self.plot:
            check_chart(self.plot)
        backend = backend_for(self.compute.device, self.compute.quality, self.compute.gpu_mode)
        figures = bench(self.avatar, self.speech, self.seconds, backend)
        pcm, tracer = speech_of(self.speech, self.seconds), None if self.trace is None else Tracer()
        live = asyncio.run(cadence(self.avatar, pcm, backend, tracer))
        if tracer is not None and self.trace is not None:
            tracer.write(self.trace)
        capacity: Ramp | None = None
        if self.sessions or self.plot:
            capacity = asyncio.run(ramp(self.avatar, pcm, backend))
        if self.plot and capacity:
            draw_ramp(capacity, figures["device"], self.plot)
        if self.json:
            print(json.dumps(figures | {"live": asdict(live)} | (capacity or {}), indent=2, default=asdict))
            return 0
        _print_figures(figures)
        print(f"a live session: {live.new_fps:.1f} new pictures a second, gaps of {live.p99_gap_ms:.0f} ms (p99)")
        print(f"quality {live.quality}: {live.reason}")
        if capacity is not None:
            print_ramp(capacity)
        return 0


def _print_figures(figures: Figures) -> None:
    table = Table("stage", "p50 ms", "p99 ms", title=_title(figures))
    for stage, (median, worst) in figures["stage_ms"].items():
        table.add_row(stage, f"{median:.1f}", f"{worst:.1f}")
    Console().print(table)
    if figures["fallback"]:
        print(f"no faster device: {figures['fallback']}")
    print(
        f"{figures['fps']:.1f} new pictures a second at {figures['level']}, {figures['memory_mb']:.0f} MB at the most"
    )
    print(f"a further avatar takes {figures['avatar_mb']:.0f} MB, a session {figures['session_mb']:.0f} MB")
    latency = f"after the first {figures['algorithmic_ms']} ms of speech"
    print(f"first frame {figures['first_frame_ms']:.0f} ms (p95) {latency}")


def _title(figures: Figures) -> str:
    return f"{figures['device']}, {figures['workers']} workers, each with {figures['threads']} threads"

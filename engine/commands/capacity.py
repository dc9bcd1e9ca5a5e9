"""The number of sessions that one device carries, measured by adding sessions until pictures are late."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.backends.backend import Backend
from engine.errors import SettingError
from engine.files import check_output, replaced
from engine.live.engine import Engine
from engine.live.session import Session
from engine.media import FPS, SAMPLE_RATE_HZ
from engine.metrics import StageTimes

DEADLINE_MS = 1000 / FPS
MOST_SESSIONS = 1024
SPREAD_S = 1.0  # sessions are opened over this time, not all at once
FIFTH = 5  # of mixed sessions, each such one talks
SILENT = (1, 16, 64, 256)
FINENESS = 8  # the search ends within an eighth of the number, which is as exact as the measurement
SUFFIXES = (".png", ".svg", ".pdf")  # of a chart


@dataclass(frozen=True)
class Step:
    """The measurement with one number of sessions, of which `talking` speak at once.

    load: the share of the device's time that the talking ones need, from the batch times measured at the start.
    p50_late_ms, p99_late_ms: lateness of the pictures of all frames with speech, or, where no session talks, of all
    frames. A frame that shows the picture of n frames before is n times 40 ms late, plus the lateness of the frame.
    late_ticks: units that went out more than half a frame late.  cores: processor time of this process, the readers
    included, as cores in use.  stage_ms: p50 and p99 of each stage; the time of a batch is divided among its pictures
    or speech steps.
    """

    sessions: int
    talking: int
    load: float
    p50_late_ms: float
    p99_late_ms: float
    late_ticks: int
    cores: float
    stage_ms: dict[str, tuple[float, float]]


class Ramp(TypedDict):
    """sessions, mixed_sessions: the largest numbers with a p99 below `deadline_ms`, where all talk and where a fifth
    does.  batch_ms: by stage and size.  steps, mixed, silent: the measurements."""

    sessions: int
    mixed_sessions: int
    deadline_ms: float
    batch_ms: dict[str, dict[int, float]]
    steps: list[Step]
    mixed: list[Step]
    silent: list[Step]


async def ramp(avatar: Path, pcm: np.ndarray, backend: Backend | None = None) -> Ramp:
    """Measure sessions of `avatar` for as long as pcm [N] int16 at 48 kHz lasts, at each of several numbers: all speak
    it, a fifth does, none does."""
    async with Engine({"avatar": avatar}, max_sessions=MOST_SESSIONS, backend=backend, max_load=math.inf) as engine:
        silent = [await measure_sessions(engine, sessions, 0, pcm) for sessions in SILENT]
        sessions, steps = await _search(engine, 1, pcm)
        mixed_sessions, mixed = await _search(engine, FIFTH, pcm)
        batch_s = engine.costs.seconds.items()
        return Ramp(
            sessions=sessions,
            mixed_sessions=mixed_sessions,
            deadline_ms=DEADLINE_MS,
            batch_ms={stage: {size: 1000 * s for size, s in times.items()} for stage, times in batch_s},
            steps=steps,
            mixed=mixed,
            silent=silent,
        )


async def _search(engine: Engine, every: int, pcm: np.ndarray) -> tuple[int, list[Step]]:
    """The largest number of sessions whose pictures are in time, where each `every`th talks, and all measurements: 1,
    2, 4, … times `every` sessions, then between the last two numbers."""
    steps: list[Step] = []
    good, bad = 0, MOST_SESSIONS + 1
    while bad - good > max(1, good // FINENESS):
        step = await measure_sessions(engine, min(max(every, 2 * good), (good + bad) // 2), every, pcm)
        steps.append(step)
        good, bad = (step.sessions, bad) if step.p99_late_ms < DEADLINE_MS else (good, step.sessions)
    return good, steps


async def measure_sessions(engine: Engine, sessions: int, every: int, pcm: np.ndarray) -> Step:
    """Measure so many sessions at once, of which each `every`th talks; none with 0."""
    pipeline = engine.pipelines["avatar"]
    pipeline.times = times = StageTimes()
    talks = [every > 0 and i % every == 0 for i in range(sessions)]
    load, late_before = engine.load(sum(talks)), engine.counters.late
    began_s, used_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        lateness = [
            tasks.create_task(_lateness_ms(engine, pcm, SPREAD_S * i / sessions, talk)) for i, talk in enumerate(talks)
        ]
    cores = (time.process_time() - used_s) / (time.perf_counter() - began_s)
    measured = [task.result() for task, talk in zip(lateness, talks, strict=True) if talk or not every]
    p50, p99 = np.percentile(np.concatenate(measured), (50, 99))
    return Step(
        sessions=sessions,
        talking=sum(talks),
        load=load,
        p50_late_ms=float(p50),
        p99_late_ms=float(p99),
        late_ticks=engine.counters.late - late_before,
        cores=cores,
        stage_ms={stage: (times.percentile_ms(stage, 50), times.percentile_ms(stage, 99)) for stage in times.stages},
    )


async def _lateness_ms(engine: Engine, pcm: np.ndarray, wait_s: float, talk: bool) -> np.ndarray:
    """Lateness of the picture of each frame of a session that is opened after a wait: of the frames of speech while it
    speaks pcm, or of all frames of a silent one that is open as long."""
    await asyncio.sleep(wait_s)
    session, loop = engine.open_session("avatar"), asyncio.get_running_loop()
    units, ends_s = session.subscribe(), loop.time() + len(pcm) / SAMPLE_RATE_HZ
    async with asyncio.TaskGroup() as tasks:
        if talk:
            tasks.create_task(_say(session, pcm))
        seen, stale, spoken = [], 0, 0
        async for unit in units:
            stale = 0 if unit.fresh else stale + 1
            seen.append((loop.time() - unit.index / FPS, stale / FPS, unit.speaking or not talk))
            spoken += unit.speaking
            if (spoken and not unit.speaking) if talk else loop.time() >= ends_s:
                break
        await session.close()
    await session.ended()
    went_s, stale_s, counts = (np.array(column) for column in zip(*seen, strict=True))
    return (1000 * (went_s - went_s.min() + stale_s))[counts.astype(bool)]


async def _say(session: Session, pcm: np.ndarray) -> None:
    session.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    await session.push_audio("speech", pcm.tobytes())
    session.end_utterance("speech")


def print_ramp(capacity: Ramp) -> None:
    """A table for each kind of sessions, and the numbers that the device carries."""
    columns = ("sessions", "talking", "load", "p50 late ms", "p99 late ms", "late ticks", "cores")
    for title, steps in (
        ("all talk", capacity["steps"]),
        ("a fifth talks", capacity["mixed"]),
        ("silent", capacity["silent"]),
    ):
        table = Table(*columns, title=title)
        for step in steps:
            late = f"{step.p50_late_ms:.1f}", f"{step.p99_late_ms:.1f}", f"{step.late_ticks}"
            table.add_row(f"{step.sessions}", f"{step.talking}", f"{step.load:.0%}", *late, f"{step.cores:.2f}")
        Console().print(table)
    print(
        f"{capacity['sessions']} sessions that talk, or {capacity['mixed_sessions']} of which a fifth does, with a p99 "
        f"below {capacity['deadline_ms']:.0f} ms"
    )


def draw_ramp(capacity: Ramp, device: str, path: Path) -> None:
    """Load and p99 lateness against sessions; needs matplotlib. Raises OutputError."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    steps = sorted(capacity["steps"], key=lambda step: step.sessions)
    sessions = [step.sessions for step in steps]
    late = figure.subplots()
    late.plot(sessions, [step.p99_late_ms for step in steps], "o-", color="tab:blue", label="p99 lateness")
    late.plot(sessions, [step.p50_late_ms for step in steps], "o:", color="tab:blue", label="median lateness")
    late.axhline(capacity["deadline_ms"], color="tab:red", linewidth=1, label="deadline")
    late.set(xlabel="sessions that speak", ylabel="ms late", ylim=(0, None), title=device)
    if sessions[-1] > 8 * sessions[0]:
        late.set_xscale("log", base=2)
    load = late.twinx()
    load.plot(sessions, [100 * step.load for step in steps], "s--", color="tab:orange", label="load")
    load.set(ylabel="load, % of the device's time", ylim=(0, None))
    late.legend(handles=[*late.get_lines(), *load.get_lines()], loc="upper left")
    late.set_xticks(sessions, [str(count) for count in sessions])
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=120)


def check_chart(path: Path) -> None:
    """Check, before minutes of measuring, that matplotlib is installed and `path` is a picture in an existing folder.

    Raises SettingError, OutputError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError("--plot needs matplotlib; pip install 'personastream[plot]'")
    check_output(path, SUFFIXES, option="--plot")

"""The number of sessions that one device carries, measured by adding sessions until pictures are late."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from engine.backends.backend import Backend
from engine.errors import SettingError
from engine.files import check_output, replaced
from engine.live.engine import Engine
from engine.live.session import Session
from engine.media import FPS, SAMPLE_RATE_HZ
from engine.metrics import StageTimes

DEADLINE_MS = 1000 / FPS
MOST_SESSIONS = 1024
SPREAD_S = 1.0  # sessions begin to speak over this time, not all at once
SUFFIXES = (".png", ".svg", ".pdf")  # of a chart


@dataclass(frozen=True)
class Step:
    """The measurement with one number of sessions that speak at once.

    load: the share of the device's time that they need, from the batch times measured at the start.  p50_late_ms,
    p99_late_ms: lateness of the pictures of all frames with speech. A frame that shows the picture of n frames before
    is n times 40 ms late, plus the lateness of the frame.  stage_ms: p50 and p99 of each stage; the time of a batch is
    divided among its pictures or speech steps.
    """

    sessions: int
    load: float
    p50_late_ms: float
    p99_late_ms: float
    stage_ms: dict[str, tuple[float, float]]


class Ramp(TypedDict):
    """sessions: the largest number with a p99 below `deadline_ms`.  batch_ms: by stage and size."""

    sessions: int
    deadline_ms: float
    batch_ms: dict[str, dict[int, float]]
    steps: list[Step]


async def ramp(avatar: Path, pcm: np.ndarray, backend: Backend | None = None) -> Ramp:
    """Let 1, 2, 4, … sessions of `avatar` speak pcm [N] int16 at 48 kHz, then search between the last two numbers."""
    async with Engine({"avatar": avatar}, max_sessions=MOST_SESSIONS, backend=backend, max_load=math.inf) as engine:
        steps: list[Step] = []
        good, bad = 0, MOST_SESSIONS + 1
        while bad - good > 1:
            step = await _step(engine, max(1, min(2 * good, (good + bad) // 2)), pcm)
            steps.append(step)
            good, bad = (step.sessions, bad) if step.p99_late_ms < DEADLINE_MS else (good, step.sessions)
        batch_s = engine.costs.seconds.items()
        return Ramp(
            sessions=good,
            deadline_ms=DEADLINE_MS,
            batch_ms={stage: {size: 1000 * s for size, s in times.items()} for stage, times in batch_s},
            steps=steps,
        )


async def _step(engine: Engine, count: int, pcm: np.ndarray) -> Step:
    pipeline = engine.pipelines["avatar"]
    pipeline.times = times = StageTimes()
    sessions = [engine.open_session("avatar") for _ in range(count)]
    load = engine.load()
    async with asyncio.TaskGroup() as tasks:
        late = [
            tasks.create_task(_lateness_ms(session, pcm, SPREAD_S * i / count)) for i, session in enumerate(sessions)
        ]
    for session in sessions:
        await session.ended()
    p50, p99 = np.percentile(np.concatenate([task.result() for task in late]), (50, 99))
    stages = {stage: (times.percentile_ms(stage, 50), times.percentile_ms(stage, 99)) for stage in times.stages}
    return Step(count, load, float(p50), float(p99), stages)


async def _lateness_ms(session: Session, pcm: np.ndarray, wait_s: float) -> np.ndarray:
    """Lateness of the picture of each frame while `session` speaks pcm, after a wait; then the session is closed."""
    units, loop = session.subscribe(), asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_say(session, pcm, wait_s))
        seen, stale, spoken = [], 0, 0
        async for unit in units:
            stale = 0 if unit.fresh else stale + 1
            seen.append((loop.time() - unit.index / FPS, stale / FPS, unit.speaking))
            spoken += unit.speaking
            if spoken and not unit.speaking:
                break
        await session.close()
    went_s, stale_s, speaking = (np.array(column) for column in zip(*seen, strict=True))
    return (1000 * (went_s - went_s.min() + stale_s))[speaking.astype(bool)]


async def _say(session: Session, pcm: np.ndarray, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    session.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    await session.push_audio("speech", pcm.tobytes())
    session.end_utterance("speech")


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

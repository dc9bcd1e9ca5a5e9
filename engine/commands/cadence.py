"""The pictures of one live session: how many are new, how evenly they come, and a trace of the work."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.backends.backend import Backend
from engine.live.engine import Engine
from engine.live.session import Session
from engine.live.trace import Tracer
from engine.media import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, MediaUnit


@dataclass(frozen=True)
class Cadence:
    """quality: of the last picture, with the reason.  new_fps: new pictures a second of speech.  p99_gap_ms: between
    new pictures; at 25 a second it is 40."""

    quality: str
    reason: str
    new_fps: float
    p99_gap_ms: float


async def cadence(avatar: Path, pcm: np.ndarray, backend: Backend, tracer: Tracer | None = None) -> Cadence:
    """Let a live session of `avatar` speak pcm [N] int16 at 48 kHz, which arrives in real time."""
    async with Engine({"avatar": avatar}, backend=backend, tracer=tracer) as engine:
        session = engine.open_session("avatar")
        speaking: list[MediaUnit] = []
        units = session.subscribe(capacity=FPS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_say(session, pcm))
            async for unit in units:
                if tracer is not None:
                    tracer.instant("new picture" if unit.fresh else "old picture", frame=unit.index)
                    tracer.counter("buffered speech, ms", session.buffered_ms)
                    tracer.counter(f"quality {engine.quality.pace}", 1)
                if unit.speaking:
                    speaking.append(unit)
                elif speaking:
                    break
            await session.close()
        new = np.array([unit.index for unit in speaking if unit.fresh])
        gaps_ms = np.diff(new) * 1000 / FPS if len(new) > 1 else np.array([len(speaking) * 1000 / FPS])
        fps = len(new) * FPS / len(speaking)
        return Cadence(str(engine.quality.pace), engine.quality.reason, fps, float(np.percentile(gaps_ms, 99)))


async def _say(session: Session, pcm: np.ndarray) -> None:
    loop = asyncio.get_running_loop()
    session.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    began_s = loop.time()
    for start in range(0, len(pcm), SAMPLES_PER_FRAME):
        await asyncio.sleep(began_s + start / SAMPLE_RATE_HZ - loop.time())
        await session.push_audio("speech", pcm[start : start + SAMPLES_PER_FRAME].tobytes())
    session.end_utterance("speech")

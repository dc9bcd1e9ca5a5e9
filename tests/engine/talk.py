"""Sessions on a virtual clock: run them, speak to them, watch them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import numpy as np

from engine.audio import float_to_pcm
from engine.config import SessionConfig
from engine.live.idle import IdlePictures
from engine.live.scheduler import Scheduler
from engine.live.session import Session
from engine.media import PlaybackFinished
from engine.queues import QueueClosed

RATE_HZ = 16_000


def speech(seconds, seed=0):
    return float_to_pcm(
        (np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ)) * 0.1).astype(np.float32)
    )


def scheduler_of(costs=None, workers=1):
    """A scheduler for puppets, whose work is done piece by piece."""
    return Scheduler(lambda batch: [work.pipeline.perform(work.job) for work in batch], costs, workers)


@contextlib.asynccontextmanager
async def running(loop, *puppets, config=None):
    """Sessions of these puppets on one scheduler, closed at the end."""
    for puppet in puppets:
        puppet.clock = loop
    async with conversing(scheduler_of(), puppets, config) as sessions:
        yield sessions


@contextlib.asynccontextmanager
async def conversing(scheduler, pipelines, config=None, quality=None):
    """Sessions of these pipelines, closed at the end with the scheduler."""
    async with asyncio.TaskGroup() as tasks:
        sessions, config = [], config or SessionConfig()
        idle = {pipeline: IdlePictures(pipeline, scheduler) for pipeline in dict.fromkeys(pipelines)}
        for i, pipeline in enumerate(pipelines):
            sessions.append(Session(str(i), pipeline, scheduler, config, quality=quality, idle=idle[pipeline]))
            tasks.create_task(sessions[-1].run())
        await asyncio.sleep(0)
        yield sessions
        for session in sessions:
            await session.close()
    await scheduler.close()


async def watch(session, seconds, loop):
    """(time, unit) of all units of so many seconds."""
    units, seen = session.subscribe(), []
    end = loop.time() + seconds
    with contextlib.suppress(TimeoutError, QueueClosed):
        async with asyncio.timeout_at(end):
            while True:
                seen.append((loop.time(), await units.get()))
    session.unsubscribe(units)
    assert units.dropped == 0
    return seen


async def say(session, name, pcm, *, packet_s=None, real_time=False):
    session.start_utterance(name, RATE_HZ, 1)
    size = round((packet_s or 0.04) * RATE_HZ)
    for i in range(0, len(pcm), size):
        if real_time:
            await asyncio.sleep(size / RATE_HZ)
        await session.push_audio(name, pcm[i : i + size].tobytes())
    session.end_utterance(name)


class Events:
    """The playback events of a session from now on, one after the other."""

    def __init__(self, session):
        self.units, self.waiting = session.subscribe(events_only=True), deque()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self.waiting:
            self.waiting.extend((await anext(self.units)).events)
        return self.waiting.popleft()

    async def until_finished(self, name):
        """The events up to the end of the utterance."""
        events = []
        async for event in self:
            events.append(event)
            if isinstance(event, PlaybackFinished) and event.utterance == name:
                return events
        raise AssertionError(f"{name} never finished: {events}")

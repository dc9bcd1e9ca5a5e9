"""A session that is broadcast and published, and waiting for what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from streaming.config import EncoderConfig
from streaming.publish.broadcast import Broadcast
from streaming.publish.destination import Destination
from streaming.publish.sinks import make_sink
from streaming.publish.status import State

CONFIG = EncoderConfig(codec="libx264")


@contextlib.asynccontextmanager
async def broadcasting(engine, config=CONFIG):
    """A broadcast of a real session without speech, and the session."""
    session = engine.open_session("speaker")
    broadcast = Broadcast(session, config)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(broadcast.run())
        try:
            yield broadcast, session
        finally:
            await session.close()
            running.cancel()


@contextlib.asynccontextmanager
async def publishing(engine, broadcast, url, sink=None):
    """A destination of the broadcast, by default with the sink of its URL; it has ended after the block."""
    avatar = engine.avatars["speaker"]
    destination = Destination(url, sink or make_sink(url, (avatar.width, avatar.height), CONFIG), broadcast)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(destination.run())
        try:
            yield destination
        finally:
            await destination.stop()
    assert destination.status.state is State.ENDED


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

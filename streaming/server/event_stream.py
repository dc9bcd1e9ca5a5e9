"""Server-sent events: those of a session, for viewers, which have no websocket, and of a dub."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from aiohttp import web

from engine.queues import MediaQueue, QueueClosed
from streaming.server.live_session import LiveSession
from streaming.server.session_events import Closed, Closing, SessionEvent, Viewers

Item = TypeVar("Item")
NAMES: dict[type[SessionEvent], str] = {Closing: "session.closing", Closed: "session.closed", Viewers: "viewers"}


async def stream_events(request: web.Request, live_session: LiveSession, keepalive_s: float) -> web.StreamResponse:
    """GET text/event-stream until the session ends or the client leaves."""
    events = live_session.listen()
    try:
        first = encode(Viewers(len(live_session.viewers)))
        return await send(request, first, events, encode, keepalive_s)
    finally:
        live_session.forget(events)


async def send(
    request: web.Request, first: bytes, events: MediaQueue[Item], encode: Callable[[Item], bytes], keepalive_s: float
) -> web.StreamResponse:
    """Send `first`, then the events until their queue is closed or the client leaves; a comment each `keepalive_s` of
    silence."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    with contextlib.suppress(QueueClosed, ConnectionError):
        await response.prepare(request)
        await response.write(first)
        while True:
            try:
                async with asyncio.timeout(keepalive_s):
                    event = await events.get()
            except TimeoutError:
                await response.write(b":\n\n")
                continue
            await response.write(encode(event))
    return response


def encode(event: SessionEvent) -> bytes:
    return server_sent(NAMES[type(event)], asdict(event))


def server_sent(name: str, data: Any) -> bytes:
    """One event in the text format of the HTML standard, 9.2.6."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()

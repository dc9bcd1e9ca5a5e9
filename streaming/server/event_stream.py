"""The events of a session as server-sent events, for viewers, which have no websocket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from aiohttp import web

from engine.queues import QueueClosed
from streaming.server.live_session import LiveSession
from streaming.server.session_events import Closed, Closing, SessionEvent, Viewers

NAMES: dict[type[SessionEvent], str] = {Closing: "session.closing", Closed: "session.closed", Viewers: "viewers"}


async def stream_events(request: web.Request, live_session: LiveSession, keepalive_s: float) -> web.StreamResponse:
    """GET text/event-stream until the session ends or the client leaves; a comment each `keepalive_s` of silence."""
    events = live_session.listen()
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    try:
        await response.prepare(request)
        await response.write(encode(Viewers(len(live_session.viewers))))
        while True:
            try:
                async with asyncio.timeout(keepalive_s):
                    event = await events.get()
            except TimeoutError:
                await response.write(b":\n\n")
                continue
            await response.write(encode(event))
    except (QueueClosed, ConnectionError):
        pass
    finally:
        live_session.forget(events)
    return response


def encode(event: SessionEvent) -> bytes:
    """One event in the text format of the HTML standard, 9.2.6."""
    return f"event: {NAMES[type(event)]}\ndata: {json.dumps(asdict(event))}\n\n".encode()

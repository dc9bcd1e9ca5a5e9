"""What happens to a session, as server-sent events: how viewers, who have no websocket, learn that and why it ends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from aiohttp import web

from engine.queues import QueueClosed
from streaming.server.live_session import Closed, Closing, LiveSession, SessionEvent, Viewers

KEEPALIVE_S = 15.0  # proxies close a connection on which nothing passes
NAMES: dict[type[SessionEvent], str] = {Closing: "session.closing", Closed: "session.closed", Viewers: "viewers"}


async def stream(request: web.Request, live_session: LiveSession) -> web.StreamResponse:
    """GET text/event-stream until the session or the reader ends."""
    events = live_session.listen()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    try:
        await response.prepare(request)
        await response.write(encode(Viewers(len(live_session.viewers))))
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
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
    """One event in the form of the HTML standard, 9.2.6."""
    return f"event: {NAMES[type(event)]}\ndata: {json.dumps(asdict(event))}\n\n".encode()

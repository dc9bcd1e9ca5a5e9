"""Pings of a websocket: signs of life for the proxies between the client and us."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web


async def keep_alive(socket: web.WebSocketResponse, every_s: float) -> None:
    """Ping until cancelled, whatever is received: a proxy may watch our direction alone."""
    while True:
        await asyncio.sleep(every_s)
        with contextlib.suppress(ConnectionError):  # the client has left, which ends the reader
            await socket.ping()

"""Outbound websockets, for remote voices and for the client of our own server: how they are opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PING_S = 15.0
MAX_WAITING_FRAMES = 4  # received and not read, each up to `max_message_bytes`; beyond them TCP stops the sender


async def open_websocket(
    url: str, headers: Mapping[str, str], *, max_message_bytes: int, timeout_s: float
) -> ClientConnection:
    """Connect to `url` (ws, wss, http or https) within `timeout_s`. The caller closes it with `close_websocket`.

    Raises WebSocketException for a refused handshake, TimeoutError, and OSError for other failures to connect.
    """
    return await connect(
        re.sub("^http", "ws", url),
        additional_headers=headers,
        compression=None,  # sound and pictures hardly shrink, and on one machine it only costs time
        proxy=None,  # as for our HTTP requests: a proxy in the environment is seldom meant for localhost
        open_timeout=timeout_s,
        # Pings are signs of life for proxies. Their answers have no time limit: a server may stop reading for as long
        # as speech lasts. Vanished peers are detected elsewhere: our server sends pings, and a remote voice has a limit
        # on its silence.
        ping_interval=PING_S,
        ping_timeout=None,
        max_size=max_message_bytes,
        max_queue=MAX_WAITING_FRAMES,
    )


async def close_websocket(socket: ClientConnection, timeout_s: float) -> None:
    """Perform the closing handshake; end the connection without it after `timeout_s`, or if the caller is cancelled.

    Messages not read are dropped, because the answer of the other end comes after them.
    """
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            tasks.create_task(socket.close())
            with contextlib.suppress(ConnectionClosed):
                async for _ in socket:
                    pass
    except TimeoutError:  # `close` itself waits without a limit while the other end takes no data
        pass
    finally:
        socket.transport.abort()

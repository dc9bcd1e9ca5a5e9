"""Detects that a client has disconnected while nothing is read from it.

Under back-pressure the server does not read, and asyncio reports the end of a connection only to a reader. The kernel
reports it anyway: an epoll registered for EPOLLRDHUP alone becomes readable when the peer closes or resets the
connection, or stops answering TCP's keep-alive.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3  # detects a peer that vanished silently after a minute
UNACKNOWLEDGED_MS = 60_000  # the same while data for it is unacknowledged


@contextmanager
def on_disconnect(transport: asyncio.Transport, gone: Callable[[], None]) -> Iterator[None]:
    """Call `gone`, once, if the peer of this TCP connection disconnects during the block."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        gone()
        yield
        return
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    loop = asyncio.get_running_loop()
    with select.epoll() as watch:
        watch.register(connection.fileno(), select.EPOLLRDHUP)  # and always EPOLLHUP and EPOLLERR

        def disconnected() -> None:
            loop.remove_reader(watch.fileno())
            gone()

        loop.add_reader(watch.fileno(), disconnected)
        try:
            yield
        finally:
            loop.remove_reader(watch.fileno())

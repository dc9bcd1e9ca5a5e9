"""Detects that a client has disconnected while nothing is read from it.

Under back-pressure the server does not read, and asyncio reports the end of a connection only to a reader. The kernel
reports it anyway: an epoll registered for EPOLLRDHUP alone becomes readable when the peer closes or resets the
connection, or stops answering TCP's keep-alive. Systems other than Linux have no epoll: there, asyncio's
own report has to do, which comes when the server reads again.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPTIONS = {  # of TCP, where the system has them
    "TCP_KEEPIDLE": 30,  # seconds
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,  # detects a peer that vanished silently after a minute
    "TCP_USER_TIMEOUT": 60_000,  # ms: the same while data for it is unacknowledged
}


@contextmanager
def on_disconnect(transport: asyncio.Transport, gone: Callable[[], None]) -> Iterator[None]:
    """Call `gone`, once, if the peer of this TCP connection disconnects during the block."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        gone()
        yield
        return
    for name, value in OPTIONS.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not hasattr(select, "epoll"):
        yield
        return
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

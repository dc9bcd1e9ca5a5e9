"""Notices that a client is gone while nobody reads from it.

Back-pressure means not reading, and asyncio tells of a connection's end only to those who read. The kernel knows: an
epoll that asks for nothing but the hang-up becomes readable when the peer closed or reset the connection or, by TCP's
own keep-alive, stopped to answer.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3  # a peer that vanished without a word is noticed after a minute
UNACKNOWLEDGED_MS = 60_000  # and so is one while something is on its way to it


@contextmanager
def on_hangup(transport: asyncio.Transport, gone: Callable[[], None]) -> Iterator[None]:
    """Call `gone`, once, when the other end of this TCP connection hangs up during the block."""
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
        watch.register(connection.fileno(), select.EPOLLRDHUP)  # and, always, EPOLLHUP and EPOLLERR

        def noticed() -> None:
            loop.remove_reader(watch.fileno())
            gone()

        loop.add_reader(watch.fileno(), noticed)
        try:
            yield
        finally:
            loop.remove_reader(watch.fileno())

"""Outbound websockets against real servers: closing ends also where the other end sends much or reads nothing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web

from streaming.websocket_client import close_websocket, open_websocket

PIECE = bytes(1 << 16)


@pytest.fixture
def connected():
    """`async with connected(talk) as socket`: a connection to a server whose side is `talk(socket)`."""

    @contextlib.asynccontextmanager
    async def connect(talk):
        async def answer(request):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await talk(socket)
            return socket

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield await open_websocket(url, {}, max_message_bytes=len(PIECE), timeout_s=60)
        finally:
            await runner.cleanup()

    return connect


async def test_closing_drops_the_messages_that_were_not_read_and_completes_the_handshake(connected):
    codes = []

    async def talk(socket):
        for _ in range(100):
            await socket.send_bytes(PIECE)
        await socket.receive()
        codes.append(socket.close_code)

    async with asyncio.timeout(60), connected(talk) as socket:
        assert await socket.recv() == PIECE
        await close_websocket(socket, timeout_s=600)
        assert socket.close_code == 1000
    assert codes == [1000]


@pytest.mark.slow
async def test_a_server_that_reads_nothing_delays_closing_by_the_timeout_only(connected):
    leave = asyncio.Event()

    async def talk(socket):
        await leave.wait()

    async with asyncio.timeout(60), connected(talk) as socket:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    await socket.send(PIECE)
        await close_websocket(socket, timeout_s=0.2)
        leave.set()


async def test_a_proxy_in_the_environment_is_not_used(connected, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def talk(socket):
        await socket.send_str("direct")
        await socket.receive()

    async with asyncio.timeout(60), connected(talk) as socket:
        assert await socket.recv() == "direct"
        await close_websocket(socket, timeout_s=60)


async def test_a_cancelled_closing_ends_the_connection_at_once(connected):
    leave = asyncio.Event()

    async def talk(socket):
        await leave.wait()

    async with asyncio.timeout(60), connected(talk) as socket:
        closing = asyncio.ensure_future(close_websocket(socket, timeout_s=600))
        await asyncio.sleep(0.05)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert socket.transport.is_closing()
        leave.set()

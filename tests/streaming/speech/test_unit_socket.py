"""The units websocket ends with its session, and is not kept for clients that are gone."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from speaking import ended
from whep_client import bearer

from streaming.config import TimeoutConfig

pytestmark = pytest.mark.asyncio(loop_scope="session")


def units(client, session):
    return client.http.ws_connect(
        f"/v1/sessions/{session['id']}/units", params={"token": session["token"]}, max_msg_size=0
    )


async def last(socket):
    """The close frame, behind all units."""
    async with asyncio.timeout(60):
        while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
    return message


async def test_it_closes_with_what_ended_the_session(serving):
    async with serving(drain_s=1.0) as client:
        session = await client.open_session()
        async with units(client, session) as socket:
            await socket.receive()
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session)):
                pass
            message = await last(socket)
            assert (message.data, message.extra) == (1000, "closed: a client closed it")
        session = await client.open_session()
        async with units(client, session) as socket:
            await socket.receive()
            draining = asyncio.ensure_future(client.server.drain())
            message = await last(socket)
            assert (message.data, message.extra) == (1001, "draining: the server shuts down")
            await draining


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_reader_that_vanishes_without_having_read_is_no_user_any_more(serving, engine, abruptly):
    async with serving(idle_session_s=1.0, timeouts=TimeoutConfig(ping_s=600.0)) as client:
        session = await client.open_session()
        socket = await units(client, session)
        await socket.receive()
        transport = socket._response.connection.transport
        transport.pause_reading()
        (live_session,) = client.server.live_sessions
        await asyncio.sleep(1.0)  # megabytes of pictures wait for the reader
        assert live_session.sockets == 1
        (transport.abort if abruptly else transport.close)()
        await ended(engine, session)


async def test_it_notices_a_hangup_while_a_unit_waits_to_be_sent(serving):
    """Half of the connection closed: what is written still goes out, and only the kernel tells that nobody is there."""
    async with serving(timeouts=TimeoutConfig(ping_s=600.0)) as client:
        session = await client.open_session()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(client.server.url.rpartition(":")[2]))
        path = f"/v1/sessions/{session['id']}/units?token={session['token']}"
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}{key}\r\n".encode())
        assert b" 101 " in await reader.readline()
        (live_session,) = client.server.live_sessions
        await asyncio.sleep(1.0)  # unread: every buffer on the way fills
        assert live_session.sockets == 1
        writer.write_eof()
        async with asyncio.timeout(60):
            while live_session.sockets:
                await asyncio.sleep(0.05)
        writer.close()

"""The units websocket: events around their units, the end of the session, and clients that are gone."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
import pytest
from speaking import ended, tone
from whep_client import bearer

from engine.media import MediaUnit, PlaybackFinished, PlaybackStarted
from streaming.config import TimeoutConfig
from streaming.speech.protocol import (
    Finished,
    SpeechAudio,
    SpeechEnd,
    SpeechStart,
    Started,
    Unit,
    decode_server,
)
from streaming.speech.unit_socket import messages_of

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


async def test_starts_stand_before_their_unit_and_ends_behind_it():
    events = (PlaybackFinished("a", 7, True), PlaybackStarted("b", 1930), PlaybackFinished("b", 5, False))
    samples = np.arange(1920, dtype=np.int16)
    unit = MediaUnit(1, np.full((2, 2, 3), 9, np.uint8), samples, 0, True, True, events)
    sent = Unit(1920, True, samples.tobytes(), bytes([9]) * 12)
    expected = [Started("b", 1930), sent, Finished("a", 7, True), Finished("b", 5, False)]
    assert list(messages_of(unit, whole=True)) == expected
    (alone,) = (message for message in messages_of(unit, whole=False) if isinstance(message, Unit))
    assert alone.picture is None and alone.samples == sent.samples


async def test_the_events_of_an_utterance_enclose_its_units(serving):
    async with serving() as client:
        session = await client.open_session()
        async with units(client, session) as socket, client.speech(session) as speech:
            await speech.send(SpeechStart("one", 16_000))
            await speech.send(SpeechAudio("one", tone(0.5)))
            await speech.send(SpeechEnd("one"))
            messages = []
            async with asyncio.timeout(60):
                while not any(isinstance(message, Finished) for message in messages):
                    messages.append(decode_server((await socket.receive()).data))
        began = next(i for i, message in enumerate(messages) if isinstance(message, Started))
        assert messages[began].pts == messages[began + 1].pts and messages[-1] == Finished("one", 8_000, False)
        spoken = [i for i, message in enumerate(messages) if isinstance(message, Unit) and message.speaking]
        assert spoken[0] == began + 1 and spoken[-1] == len(messages) - 2


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


@pytest.mark.slow
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

"""Clients that vanish are detected, and their sessions end."""

from __future__ import annotations

import asyncio
import contextlib

import aioice.ice
import pytest
from clients import Speech
from speaking import ended, tone
from whep_client import SDP, a_good_offer, bearer, frames, viewer

from streaming.config import TimeoutConfig
from streaming.speech.protocol import Encoding, Failure, SpeechAudio, SpeechStart, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.slow
@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_client_that_vanishes_while_its_message_waits_for_room_is_detected(serving, engine, abruptly):
    async with serving(idle_session_s=1.0, timeouts=TimeoutConfig(ping_s=600.0)) as client:
        session = await client.open_session()
        socket = await client.http.ws_connect(session["speech"], params={"token": session["token"]})
        speech = Speech(socket, Encoding.MSGPACK)
        await speech.send(SpeechStart("long", 8_000))
        for _ in range(3):
            await speech.send(SpeechAudio("long", tone(30, 8_000)))
        await speech.receive_until(Started)
        (live_session,) = client.server.live_sessions
        async with asyncio.timeout(60):
            while live_session.session.buffered_ms < 25_000:  # then the second message waits for room, the third for it
                await asyncio.sleep(0.05)
        assert live_session.sockets == 1
        transport = socket._response.connection.transport
        (transport.abort if abruptly else transport.close)()
        await ended(engine, session)


@pytest.mark.slow
async def test_a_client_that_vanishes_while_it_sends_more_than_is_taken_is_detected(serving, engine):
    async with serving(idle_session_s=1.0) as client:
        session = await client.open_session()
        socket = await client.http.ws_connect(session["speech"], params={"token": session["token"]})
        speech = Speech(socket, Encoding.MSGPACK)
        await speech.send(SpeechStart("long", 8_000))
        message = SpeechAudio("long", tone(60, 8_000))

        async def flood():
            while True:
                await speech.send(message)

        flooding = asyncio.create_task(flood())
        assert (await speech.receive_until(Failure)).code == "capacity"
        socket._response.connection.transport.abort()
        with contextlib.suppress(ConnectionError):
            await flooding
        await ended(engine, session)
        async with asyncio.timeout(60):
            while any("SpeechSocket" in task.get_coro().__qualname__ for task in asyncio.all_tasks()):
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_session_is_kept_for_its_viewers_when_the_speaker_vanishes(serving, engine):
    async with serving(idle_session_s=1.0) as client:
        session = await client.open_session()
        async with viewer(client, session):
            async with client.speech(session) as speech:
                await speech.send(SpeechStart("a", 16_000))
                await speech.receive()
            await asyncio.sleep(1.5)
            assert session["id"] in engine.sessions
        await ended(engine, session)


@pytest.mark.slow
async def test_a_viewer_that_never_connects_is_given_up_and_then_its_session(serving, engine):
    offer = await a_good_offer()  # of a peer that is gone
    async with serving(idle_session_s=0.5, timeouts=TimeoutConfig(viewer_connect_s=1.0)) as client:
        session = await client.open_session()
        async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
            assert reply.status == 201
        await ended(engine, session)
        async with client.http.get("/metrics") as reply:
            page = await reply.text()
        assert 'personastream_viewers_left_total{reason="timeout"} 1.0' in page


@pytest.mark.slow
async def test_a_viewer_whose_network_is_gone_is_reaped_with_its_session(serving, engine, monkeypatch):
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.1)  # RFC 7675 has 5 s; six checks in a row have to fail
    async with serving(idle_session_s=1.0) as client:
        session = await client.open_session()
        async with viewer(client, session) as whep:
            await frames(whep.tracks["video"], 2)
            for protocol in whep.peer.getTransceivers()[0].receiver.transport.transport._connection._protocols:
                protocol.transport.abort()  # no RTCP BYE, no DTLS close
            await ended(engine, session)
        async with client.http.get("/metrics") as reply:
            page = await reply.text()
        assert 'personastream_viewers_left_total{reason="failed"} 1.0' in page

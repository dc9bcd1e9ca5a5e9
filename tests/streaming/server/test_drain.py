"""The end of sessions and of the server: speech that has begun is played, and clients learn the reason."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import aiohttp
import pytest
from whep_client import bearer, frames, viewer

from streaming.config import TimeoutConfig
from streaming.speech.protocol import Failure, Finished, SessionClosing, SpeechEnd, SpeechStart, SpeechText, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Reader:
    """Server-sent events of one session."""

    def __init__(self, reply: aiohttp.ClientResponse):
        self.reply = reply

    async def next(self, timeout_s: float = 60.0):
        name = data = None
        async with asyncio.timeout(timeout_s):
            while line := (await self.reply.content.readline()).decode():
                if line == "\n" and name:
                    return name, json.loads(data)
                field, _, value = line.rstrip("\n").partition(": ")
                name, data = (value, data) if field == "event" else (name, value)
        return None


@pytest.mark.slow
async def test_draining_finishes_the_sentence_and_says_why_it_ends(serving, engine, problem, caplog):
    caplog.set_level(logging.INFO, logger="streaming")
    async with serving(drain_s=15.0) as client:
        session = await client.open_session()
        idle = await client.open_session()
        token = {"token": session["token"]}
        async with client.speech(session) as speech, client.http.get(session["events"], params=token) as reply:
            events = Reader(reply)
            assert await events.next() == ("viewers", {"count": 0})
            await speech.send(SpeechText("last", "This sentence is spoken to its end."))
            await speech.receive_until(Started)
            draining = asyncio.ensure_future(client.server.drain())
            closing = await speech.receive_until(SessionClosing)
            assert closing == SessionClosing("draining", 15_000)
            assert await events.next() == ("session.closing", {"reason": "draining", "within_s": 15.0})
            async with client.http.get("/readyz") as ready:
                await problem(ready, 503, "draining")
                assert int(ready.headers["Retry-After"]) > 0
            async with client.http.get("/healthz") as healthy:
                assert healthy.status == 200
            async with client.http.post("/v1/sessions", json={"avatar": "speaker"}) as refused:
                await problem(refused, 503, "draining")
                assert int(refused.headers["Retry-After"]) > 0
            async with client.http.get("/capacity") as capacity:
                found = await capacity.json()
                assert found["available"] == 0 and found["draining"]
            assert idle["id"] not in engine.sessions, "nothing was said there"
            await speech.send(SpeechStart("more", 16_000))
            refusal = await speech.receive()
            assert isinstance(refusal, Failure) and refusal.code == "draining" and refusal.retryable
            finished = await speech.receive_until(Finished)
            assert finished.id == "last" and not finished.interrupted
            message = await speech.socket.receive(timeout=60)
            assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1001
            assert message.extra == "draining: the server shuts down"
            ended = ("session.closed", {"reason": "draining", "detail": "the server shuts down"})
            assert await events.next() == ended and await events.next() is None
            await draining
        assert not engine.sessions
        ends = [record.getMessage() for record in caplog.records if record.getMessage().startswith("session.close ")]
        assert len(ends) == 2 and all("reason=draining" in line for line in ends)


async def test_draining_is_bounded(serving, engine):
    async with serving(drain_s=0.5) as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            await speech.send(SpeechStart("endless", 16_000))
            await speech.taken()
            async with asyncio.timeout(30):
                await client.server.drain()
            assert not engine.sessions


async def test_a_silent_event_stream_is_kept_alive_with_comments(serving):
    async with serving(timeouts=TimeoutConfig(event_keepalive_s=0.05)) as client:
        session = await client.open_session()
        async with client.http.get(session["events"], params={"token": session["token"]}) as reply:
            lines = [await reply.content.readline() for _ in range(6)]
    assert lines[:3] == [b"event: viewers\n", b'data: {"count": 0}\n', b"\n"] and b":\n" in lines[3:]


async def test_a_closed_session_is_told_to_its_socket_and_viewers(serving, problem):
    async with serving() as client:
        session = await client.open_session()
        params = {"token": session["token"]}
        async with (
            client.speech(session) as speech,
            client.http.get(session["events"], params=params) as reply,
            viewer(client, session) as whep,
        ):
            events = Reader(reply)
            assert await events.next() == ("viewers", {"count": 0})
            assert await events.next() == ("viewers", {"count": 1})
            await frames(whep.tracks["video"], 2)
            await speech.receive()
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session)) as deleted:
                assert deleted.status == 204
            assert await events.next() == ("session.closed", {"reason": "closed", "detail": "a client closed it"})
            message = await speech.socket.receive(timeout=60)
            assert message.data == 1000 and message.extra == "closed: a client closed it"
        async with client.http.post(session["whep"], data="v=0", headers=bearer(session)) as late:
            assert "a client closed it" in await problem(late, 410, "session-closed")


async def test_the_log_has_one_line_for_each_arrival_and_departure(serving, caplog):
    caplog.set_level(logging.INFO, logger="streaming")
    async with serving() as client:
        session = await client.open_session()
        async with viewer(client, session) as whep:
            await frames(whep.tracks["video"], 10)
            assert await whep.leave() == 200
        async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session)):
            pass
        async with client.http.get("/metrics") as reply:
            page = await reply.text()
        for stage in ("idle", "encode"):  # of a session that is closed, too
            assert float(re.search(rf'stage_seconds_count\{{stage="{stage}"\}} (\S+)', page)[1]) > 5
        assert 'personastream_viewers_left_total{reason="deleted"} 1.0' in page
        assert 'personastream_sessions_closed_total{reason="closed"} 1.0' in page
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO and r.name.startswith("streaming")]
    assert [line.split()[0] for line in lines] == ["session.open", "viewer.join", "viewer.leave", "session.close"]
    assert all(f"session={session['id']}" in line for line in lines)
    assert "address=127.0.0.1" in lines[0] and "reason=deleted" in lines[2] and "reason=closed" in lines[3]


async def test_an_utterance_that_ends_while_draining_ends_it(serving, engine):
    async with serving(drain_s=30.0) as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            await speech.send(SpeechStart("open", 16_000))
            await speech.taken()
            draining = asyncio.ensure_future(client.server.drain())
            await speech.receive_until(SessionClosing)
            await asyncio.sleep(0.2)
            assert not draining.done()
            await speech.send(SpeechEnd("open"))
            async with asyncio.timeout(30):
                await draining


async def test_draining_does_not_wait_for_a_session_without_users(serving, engine):
    async with serving(drain_s=30.0) as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            await speech.send(SpeechText("long", "A sentence that goes on and on while all leave the room. " * 5))
            await speech.receive_until(Started)
            draining = asyncio.ensure_future(client.server.drain())
            await asyncio.sleep(0.5)
            assert session["id"] in engine.sessions
        async with asyncio.timeout(30):
            await draining
        assert not engine.sessions

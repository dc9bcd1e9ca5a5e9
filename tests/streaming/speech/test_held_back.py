"""A client that sends speech faster than it is played: its pings are answered, and what is not taken is told."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from speaking import tone
from websockets.asyncio.client import connect

from streaming.config import TimeoutConfig
from streaming.speech.inbox import MAX_WAITING_BYTES
from streaming.speech.protocol import (
    Encoding,
    Failure,
    Finished,
    SessionReady,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    Started,
    decode_server,
    encode,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MINUTE = tone(60, 8_000)


@pytest.mark.slow
async def test_pings_behind_minutes_of_speech_are_answered(serving):
    """The pings of Python's `websockets`, in time lapse: every 20 s, answered within 20 s."""
    async with serving() as client:
        session = await client.open_session()
        url = f"{client.server.url}{session['speech']}?token={session['token']}".replace("http", "ws", 1)
        async with connect(url, ping_interval=1.0, ping_timeout=1.0) as socket:
            await socket.send(encode(SpeechStart("long", 8_000), Encoding.MSGPACK))
            for _ in range(10):
                await socket.send(encode(SpeechAudio("long", MINUTE), Encoding.MSGPACK))
            events = [decode_server(await socket.recv()) for _ in range(2)]
            assert [type(event) for event in events] == [SessionReady, Started]
            await asyncio.sleep(3)
            await socket.send(encode(SpeechCancel(), Encoding.MSGPACK))
            finished = decode_server(await socket.recv())
            assert isinstance(finished, Finished) and finished.interrupted


@pytest.mark.slow
@pytest.mark.parametrize("encoding", Encoding)
async def test_speech_beyond_the_limit_is_refused_once_with_the_number_of_samples_taken(serving, encoding):
    async with serving() as client, client.speech(await client.open_session(), encoding) as speech:
        piece = bytes(600_000)
        sent = MAX_WAITING_BYTES // len(piece) + 20  # the session itself takes 30 s
        await speech.send(SpeechStart("long", 48_000, 2))
        for _ in range(sent):
            await speech.send(SpeechAudio("long", piece))
        refused = await speech.receive_until(Failure)
        assert (refused.code, refused.retryable, refused.id) == ("capacity", True, "long")
        assert refused.taken_samples % (len(piece) // 4) == 0
        assert MAX_WAITING_BYTES < 4 * refused.taken_samples + len(piece) + 4 * 48_000 * 40 < len(piece) * (sent + 20)
        await speech.send(SpeechEnd("long"))
        await speech.send(SpeechCancel())
        await speech.send(SpeechStart("long", 8_000))
        await speech.send(SpeechAudio("long", tone(0.3, 8_000)))
        await speech.send(SpeechEnd("long"))
        while (message := await speech.receive()) != Finished("long", 2_400, False):
            assert not isinstance(message, Failure), message


async def test_the_speech_of_a_connection_that_is_cut_is_played_and_reported_to_the_others(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as watching, client.speech(session) as speech:
            for name in ("a", "b"):
                await speech.send(SpeechStart(name, 8_000))
                for _ in range(20):
                    await speech.send(SpeechAudio(name, tone(0.05, 8_000)))
                if name == "a":
                    await speech.send(SpeechEnd(name))
            await speech.taken()
            speech.socket._response.connection.transport.abort()
            assert [await watching.receive_until(Finished) for _ in range(2)] == [
                Finished("a", 8_000, False),
                Finished("b", 8_000, False),
            ]


async def test_a_silent_client_is_pinged_whatever_it_sends(serving):
    async with serving(timeouts=TimeoutConfig(ping_s=0.2)) as client:
        session = await client.open_session()
        path, token = session["speech"], {"token": session["token"]}
        async with client.http.ws_connect(path, params=token, autoping=False) as socket:
            pings = 0
            async with asyncio.timeout(20):
                while pings < 3:
                    await socket.send_str("{}")
                    pings += (await socket.receive()).type is aiohttp.WSMsgType.PING


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(("channels", "piece_bytes"), [(1, 333), (2, 6_001), (2, 3_202)])
async def test_pieces_of_any_length_are_played_whole(serving, encoding, channels, piece_bytes):
    pcm = tone(0.4, 16_000 * channels)
    async with serving() as client, client.speech(await client.open_session(), encoding) as speech:
        await speech.send(SpeechStart("a", 16_000, channels))
        for start in range(0, len(pcm), piece_bytes):
            await speech.send(SpeechAudio("a", pcm[start : start + piece_bytes]))
        await speech.send(SpeechEnd("a"))
        messages = [await speech.receive()]
        while not isinstance(messages[-1], Finished):
            messages.append(await speech.receive())
        assert messages[-1] == Finished("a", 6_400, False)
        assert not any(isinstance(message, Failure) for message in messages)


async def test_a_torn_last_sample_is_dropped_and_told_once(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechStart("a", 16_000))
        await speech.send(SpeechAudio("a", tone(0.4)[:-1]))
        await speech.send(SpeechEnd("a"))
        failure = await speech.receive_until(Failure)
        assert failure.code == "speech-format" and "1 bytes of a sample that has 2" in failure.message
        assert await speech.receive_until(Finished) == Finished("a", 6_399, False)

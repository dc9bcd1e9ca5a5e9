"""The TTS bridge against the real server: speech in, playback reports out."""

from __future__ import annotations

import asyncio
import wave

import aiohttp
import pytest
from speaking import tone

from streaming.speech.protocol import (
    MAX_MESSAGE_BYTES,
    Encoding,
    Failure,
    Finished,
    SessionReady,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    SpeechText,
    Started,
)
from streaming.speech.speech_socket import WAITING_TEXTS

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("encoding", Encoding)
async def test_speech_is_played_and_reported_in_the_clients_encoding(serving, speech_wav, encoding):
    with wave.open(str(speech_wav)) as sound:
        rate, channels = sound.getframerate(), sound.getnchannels()
        pcm = sound.readframes(rate)
    async with serving() as client, client.speech(await client.open_session(), encoding) as speech:
        ready = await speech.receive()
        assert isinstance(ready, SessionReady) and ready.avatar == "speaker" and ready.fps == 25
        await speech.send(SpeechStart("one", rate, channels))
        for start in range(0, len(pcm), 6_400):
            await speech.send(SpeechAudio("one", pcm[start : start + 6_400]))
        await speech.send(SpeechEnd("one"))
        message = await speech.socket.receive(timeout=60)
        expected = aiohttp.WSMsgType.TEXT if encoding is Encoding.JSON else aiohttp.WSMsgType.BINARY
        assert message.type is expected
        finished = await speech.receive_until(Finished)
        assert finished == Finished("one", len(pcm) // 2 // channels, False)


async def test_text_is_spoken(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechText("greeting", "Hello.", "en-us"))
        assert (await speech.receive_until(Started)).id == "greeting"
        finished = await speech.receive_until(Finished)
        assert finished.id == "greeting" and not finished.interrupted
        assert 4_000 < finished.position_samples < 44_100


async def test_utterances_keep_the_order_of_their_messages(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechText("first", "One."))
        await speech.send(SpeechStart("second", 16_000))
        await speech.send(SpeechAudio("second", tone(0.4)))
        await speech.send(SpeechEnd("second"))
        assert [(await speech.receive_until(Started)).id for _ in range(2)] == ["first", "second"]


async def test_cancel_interrupts_and_says_where(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechStart("long", 16_000))
        await speech.send(SpeechAudio("long", tone(8)))
        await speech.receive_until(Started)
        await asyncio.sleep(0.4)
        await speech.send(SpeechCancel())
        finished = await speech.receive_until(Finished)
        assert finished.id == "long" and finished.interrupted
        assert 0 < finished.position_samples < 8 * 16_000
        # what was on its way when the cancel was sent is ignored, not refused
        await speech.send(SpeechAudio("long", tone(0.1)))
        await speech.send(SpeechEnd("long"))
        await speech.send(SpeechText("next", "Yes."))
        assert (await speech.receive_until(Started)).id == "next"


async def test_texts_that_wait_when_they_are_cancelled_are_not_spoken_and_take_no_place(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.receive()
        for turn in range(3):
            for i in range(WAITING_TEXTS):
                await speech.send(SpeechText(f"{turn}-{i}", "A text that nobody will hear to its end."))
            await speech.send(SpeechCancel())
        await speech.send(SpeechText("0-0", "Yes."))  # an id that was cancelled is free again
        started, finished = [], []
        while not finished or finished[-1].interrupted:
            message = await speech.receive()
            assert not isinstance(message, Failure), message
            (started if isinstance(message, Started) else finished).append(message)
        assert finished[-1].id == "0-0" and started[-1].id == "0-0"
        assert len(finished) == 3 * WAITING_TEXTS + 1


async def test_late_messages_of_an_interrupted_utterance_are_ignored_though_its_id_is_in_use_again(serving):
    async with serving() as client:
        session = await client.open_session()
        (live_session,) = client.server.live_sessions
        async with client.speech(session) as speech, client.speech(session) as other:
            await speech.send(SpeechStart("mine", 16_000))
            await speech.send(SpeechAudio("mine", tone(1)))
            await speech.receive_until(Started)
            await other.send(SpeechCancel())
            assert (await speech.receive_until(Finished)).interrupted
            await other.send(SpeechStart("mine", 16_000))
            await other.send(SpeechAudio("mine", tone(0.5)))
            await other.receive_until(Started)
            await speech.send(SpeechAudio("mine", tone(0.5)))  # late: neither refused nor added to the other's
            await speech.send(SpeechEnd("mine"))
            await speech.socket.close()
            await other.send(SpeechAudio("mine", tone(0.5)))
            await other.send(SpeechEnd("mine"))
            while (finished := await other.receive_until(Finished)).interrupted:
                pass
            assert finished == Finished("mine", 16_000, False)
        async with asyncio.timeout(30):
            while live_session.sockets:
                await asyncio.sleep(0.01)


async def test_sound_behind_an_open_utterance_does_not_keep_its_end_from_being_read(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechStart("first", 8_000))
        await speech.send(SpeechStart("second", 8_000))
        for _ in range(3):
            await speech.send(SpeechAudio("second", tone(20, 8_000)))
        failure = await speech.receive_until(Failure)
        assert failure.code == "capacity" and failure.retryable and "end 'first'" in failure.message
        await speech.send(SpeechEnd("first"))
        assert (await speech.receive_until(Started)).id == "second"


async def test_a_client_that_leaves_while_it_is_held_back_leaves_no_socket_behind(serving):
    async with serving() as client:
        session = await client.open_session()
        (live_session,) = client.server.live_sessions
        async with client.speech(session) as watching:
            async with client.speech(session) as speech:
                await speech.send(SpeechStart("flood", 8_000))
                await speech.send(SpeechAudio("flood", tone(40, 8_000)))
                await speech.receive_until(Started)
            await watching.send(SpeechCancel())
            await watching.receive_until(Finished)
            async with asyncio.timeout(30):
                while live_session.sockets > 1:
                    await asyncio.sleep(0.01)


async def test_refusals_are_typed_and_the_connection_goes_on(serving):
    async with serving() as client, client.speech(await client.open_session(), Encoding.JSON) as speech:
        await speech.receive()
        for message, code in [
            (SpeechAudio("unknown", b"\0\0"), "protocol"),
            (SpeechEnd("unknown"), "protocol"),
            (SpeechStart("odd", 12_345), "speech-format"),
            (SpeechText("t", "Hello.", "klingon"), "voice"),
        ]:
            await speech.send(message)
            failure = await speech.receive()
            assert isinstance(failure, Failure) and (failure.code, failure.retryable) == (code, False), message
        await speech.socket.send_str("{}")
        assert "message type missing" in (await speech.receive()).message
        await speech.send(SpeechStart("odd", 16_000))
        await speech.send(SpeechStart("odd", 16_000))
        assert (await speech.receive()).code == "protocol"
        await speech.send(SpeechAudio("odd", tone(0.3)))
        await speech.send(SpeechEnd("odd"))
        assert (await speech.receive_until(Finished)).position_samples == 4_800


async def test_a_message_beyond_the_limit_closes_the_connection(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.receive()
        await speech.socket.send_bytes(bytes(MAX_MESSAGE_BYTES + 1))
        message = await speech.socket.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.CLOSE and message.data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_dropped_connection_ends_its_utterance(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as watching:
            async with client.speech(session) as speech:
                await speech.send(SpeechStart("cut", 16_000))
                await speech.send(SpeechAudio("cut", tone(0.5)))
            assert await watching.receive_until(Finished) == Finished("cut", 8_000, False)


async def test_a_second_connection_can_interrupt_when_the_first_is_held_back(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as speech, client.speech(session) as other:
            await speech.send(SpeechStart("flood", 8_000))
            for _ in range(8):  # 160 s, more than the session buffers: the server stops reading
                await speech.send(SpeechAudio("flood", tone(20, 8_000)))
            await other.receive_until(Started)
            await other.send(SpeechCancel())
            assert (await other.receive_until(Finished)).interrupted


async def test_closing_the_session_closes_the_connection(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            await speech.receive()
            bearer = {"Authorization": f"Bearer {session['token']}"}
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer) as reply:
                assert reply.status == 204
            message = await speech.socket.receive(timeout=30)
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)

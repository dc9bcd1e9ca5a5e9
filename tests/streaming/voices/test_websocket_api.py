"""Voices over websockets against real servers that answer as the services do, and wrongly."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct

import pytest
from aiohttp import WSMsgType, web
from speaking import speak_whole

from streaming.errors import (
    VoiceAuthError,
    VoiceBrokenError,
    VoiceError,
    VoiceFormatError,
    VoiceQuotaError,
    VoiceStalledError,
    VoiceUnreachableError,
)
from streaming.voices.websocket_api import WebsocketVoice

SENTENCES = "The first sentence is here. The second sentence follows it."
PCM = struct.pack("<4800h", *range(4800))  # 0.2 s
CODED = base64.b64encode(PCM).decode()


@pytest.fixture
def speaking(service):
    """`async with speaking(name, talk) as (voice, requests)`: `talk(socket)` is the service's side."""

    @contextlib.asynccontextmanager
    async def open_voice(name, talk, stall_s=60.0):
        requests = []

        async def answer(request):
            requests.append(request)
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await talk(socket)
            await socket.close()
            return socket

        async with service("/{path:.*}", answer) as url:
            url = url.replace("http", "ws")
            yield (
                WebsocketVoice(service=name, url=url, model="m", voice="v", key="secret", stall_s=stall_s),
                requests,
            )

    return open_voice


async def test_cartesia_gets_the_messages_of_its_reference(speaking):
    heard = []

    async def talk(socket):
        while not heard or heard[-1]["continue"]:
            heard.append((await socket.receive()).json())
            await socket.send_json({"type": "chunk", "data": CODED, "done": False, "context_id": "1"})
        await socket.send_json({"type": "timestamps", "done": False})
        await socket.send_json({"type": "done", "done": True, "context_id": "1"})
        await socket.receive()

    async with speaking("cartesia", talk) as (voice, requests):
        assert await speak_whole(voice, SENTENCES) == PCM * 2
    assert [found["transcript"].strip() for found in heard] == [
        "The first sentence is here.",
        "The second sentence follows it.",
    ]
    assert heard[0]["output_format"] == {"container": "raw", "encoding": "pcm_s16le", "sample_rate": 24_000}
    assert heard[0]["voice"] == {"mode": "id", "id": "v"} and heard[0]["model_id"] == "m"
    assert requests[0].headers["X-API-Key"] == "secret" and requests[0].path == "/tts/websocket"


async def test_deepgram_gets_the_messages_of_its_reference(speaking):
    heard = []

    async def talk(socket):
        while not heard or heard[-1]["type"] != "Flush":
            heard.append((await socket.receive()).json())
        await socket.send_json({"type": "Metadata", "request_id": "x"})
        await socket.send_bytes(PCM[:1001])
        await socket.send_bytes(PCM[1001:])
        await socket.send_json({"type": "Flushed", "sequence_id": 0})
        await socket.receive()

    async with speaking("deepgram", talk) as (voice, requests):
        assert await speak_whole(voice, SENTENCES) == PCM
    assert [found["type"] for found in heard] == ["Speak", "Speak", "Flush"]
    assert dict(requests[0].query) == {"model": "v", "encoding": "linear16", "sample_rate": "24000"}
    assert requests[0].headers["Authorization"] == "Token secret"


async def test_elevenlabs_is_spoken_to_as_its_reference_says(speaking):
    heard = []

    async def talk(socket):
        while not heard or heard[-1]["text"]:
            heard.append((await socket.receive()).json())
        await socket.send_json({"audio": CODED, "isFinal": None})
        await socket.send_json({"audio": None, "isFinal": True})
        await socket.receive()

    async with speaking("elevenlabs", talk) as (voice, requests):
        assert await speak_whole(voice, SENTENCES) == PCM
    assert [found["text"].strip() for found in heard] == [
        "",
        "The first sentence is here.",
        "The second sentence follows it.",
        "",
    ]
    assert requests[0].path == "/v1/text-to-speech/v/stream-input"
    assert dict(requests[0].query) == {"model_id": "m", "output_format": "pcm_24000"}
    assert requests[0].headers["xi-api-key"] == "secret"


async def fails(voice, kind, message):
    got = []
    with pytest.raises(VoiceError, match=message) as failure:
        async for piece in voice.speak("One sentence."):
            got.append(piece)
    assert type(failure.value) is kind
    return b"".join(got)


async def test_a_service_that_stalls_is_an_error_after_the_limit(speaking):
    async def talk(socket):
        await socket.send_bytes(PCM)
        await asyncio.sleep(600)

    async with speaking("deepgram", talk, stall_s=0.5) as (voice, _), asyncio.timeout(30):
        assert await fails(voice, VoiceStalledError, "sent nothing for 0.5 s after 0.2 s") == PCM


async def test_sound_sent_before_a_service_closes_is_spoken(speaking):
    async def talk(socket):
        await socket.send_bytes(PCM)
        await socket.close(code=1011, message=b"out of voices")

    async with speaking("deepgram", talk) as (voice, _):
        assert await fails(voice, VoiceBrokenError, "closed the connection .*after 0.2 s") == PCM


async def test_endless_sound_is_cut_off_and_its_connection_closed(speaking):
    async def talk(socket):
        with contextlib.suppress(ConnectionError):
            while True:
                await socket.send_bytes(bytes(1 << 16))

    async with speaking("deepgram", talk) as (voice, _), asyncio.timeout(30):
        await fails(voice, VoiceFormatError, "takes 20 s at the most")


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ("<html>", VoiceFormatError, "sent '<html>'"),
        ("[" * 100_000, VoiceFormatError, "expected JSON"),
        ("[]", VoiceFormatError, "not an object"),
        ('{"type": "chunk", "data": "@"}', VoiceFormatError, "expected JSON"),
        ('{"type": "chunk", "data": 7}', VoiceFormatError, "expected JSON"),
        (b"\0\0", VoiceFormatError, "binary message"),
        (json.dumps({"type": "error", "error": "Invalid model", "done": True}), VoiceError, "Invalid model"),
        (json.dumps({"type": "done", "done": True}), VoiceFormatError, "sent no sound"),
    ],
)
async def test_a_malformed_message_is_refused_and_quoted(speaking, data, kind, message):
    async def talk(socket):
        await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
        await socket.receive()

    async with speaking("cartesia", talk) as (voice, _):
        assert await fails(voice, kind, message) == b""


@pytest.mark.parametrize(
    ("status", "kind"), [(401, VoiceAuthError), (429, VoiceQuotaError), (500, VoiceUnreachableError), (404, VoiceError)]
)
async def test_a_refused_handshake_is_the_error_of_its_status(service, status, kind):
    async def answer(request):
        return web.Response(status=status)

    async with service("/{path:.*}", answer) as url:
        voice = WebsocketVoice(service="deepgram", url=url, model="", voice="v", key="k", stall_s=60)
        await fails(voice, kind, f"answered {status}")


async def test_an_address_without_a_server_is_an_error():
    url = "ws://127.0.0.1:1"
    voice = WebsocketVoice(service="deepgram", url=url, model="", voice="v", key="k", stall_s=60)
    await fails(voice, VoiceUnreachableError, "cannot be reached")


async def test_leaving_the_generator_closes_the_connection(speaking):
    gone = asyncio.Event()

    async def talk(socket):
        while (await socket.receive()).type is WSMsgType.TEXT:
            await socket.send_bytes(PCM)
        gone.set()

    async with speaking("deepgram", talk) as (voice, _), asyncio.timeout(30):
        pieces = voice.speak("One sentence.")
        await anext(pieces)
        await pieces.aclose()
        await gone.wait()

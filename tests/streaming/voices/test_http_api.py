"""Voices over HTTP against real servers: sound as it should be, and every failure."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest
from aiohttp import web
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
from streaming.voices.espeak_child import wav_header
from streaming.voices.http_api import ATTEMPTS, HttpVoice, wav_data_offset

SENTENCES = "The first sentence is here. The second sentence follows it."
PCM = struct.pack("<4800h", *range(4800))  # 0.2 s


@pytest.fixture
def speaking(service, http):
    """`async with speaking(handler) as voice`: a voice at a server that answers with `handler`."""

    @contextlib.asynccontextmanager
    async def open_voice(handler, **settings):
        async with service("/v1/audio/speech", handler) as url:
            settings = {"url": f"{url}/v1", "stall_s": 60.0, **settings}
            yield HttpVoice(http=http, model="tts-1", voice="alloy", key="secret", **settings)

    return open_voice


async def stream(request, content_type="audio/pcm"):
    reply = web.StreamResponse(headers={"Content-Type": content_type})
    await reply.prepare(request)
    return reply


async def test_each_sentence_is_one_request_in_the_form_of_the_api(speaking):
    requests = []

    async def answer(request):
        requests.append((await request.json(), request.headers["Authorization"]))
        return web.Response(body=PCM, content_type="audio/pcm")

    async with speaking(answer) as voice:
        assert await speak_whole(voice, SENTENCES) == PCM * 2
    body = {"model": "tts-1", "voice": "alloy", "response_format": "pcm"}
    assert [found for found, _ in requests] == [
        body | {"input": "The first sentence is here."},
        body | {"input": "The second sentence follows it."},
    ]
    assert {key for _, key in requests} == {"Bearer secret"}


async def test_sound_comes_out_before_the_service_has_made_all_of_it_and_in_whole_samples(speaking):
    go_on = asyncio.Event()

    async def answer(request):
        reply = await stream(request)
        await reply.write(PCM[:2001])
        await go_on.wait()
        await reply.write(PCM[2001:])
        return reply

    async with speaking(answer) as voice:
        async with contextlib.aclosing(voice.speak("One sentence.")) as pieces:
            first = await anext(pieces)
            assert first == PCM[:2000]
            go_on.set()
            rest = [piece async for piece in pieces]
        assert first + b"".join(rest) == PCM


async def test_a_wav_answer_is_taken_without_its_header_however_it_is_cut(speaking):
    async def answer(request):
        reply = await stream(request, "audio/wav")
        for byte in wav_header(24_000):
            await reply.write(bytes([byte]))
        await reply.write(PCM)
        return reply

    async with speaking(answer) as voice:
        assert await speak_whole(voice, "One sentence.") == PCM


async def test_wav_at_another_rate_is_refused_and_says_so(speaking):
    async def answer(request):
        return web.Response(body=wav_header(22_050) + PCM, content_type="audio/wav")

    async with speaking(answer) as voice:
        with pytest.raises(VoiceFormatError, match="at 22050 Hz, expected s16le mono at 24000 Hz"):
            await speak_whole(voice, "One sentence.")


def test_chunks_before_the_sound_are_skipped():
    header = wav_header(24_000)
    extra = header[:36] + struct.pack("<4sI", b"LIST", 3) + b"abc\0" + header[36:]
    assert wav_data_offset(extra, 24_000, "it") == len(extra)
    assert wav_data_offset(extra[:-1], 24_000, "it") is None


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (401, VoiceAuthError, 1),
        (403, VoiceAuthError, 1),
        (402, VoiceQuotaError, 1),
        (400, VoiceError, 1),
        (429, VoiceQuotaError, ATTEMPTS),
        (500, VoiceUnreachableError, ATTEMPTS),
    ],
)
async def test_a_refusal_is_typed_and_only_a_passing_one_is_tried_again(speaking, status, kind, attempts):
    requests = []

    async def answer(request):
        requests.append(request)
        return web.Response(status=status, text="the reason")

    async with speaking(answer, backoff_s=0.01) as voice:
        with pytest.raises(VoiceError, match=f"answered {status} .the reason") as refusal:
            await speak_whole(voice, "One sentence.")
    assert type(refusal.value) is kind and len(requests) == attempts


async def test_a_second_attempt_that_works_is_spoken_once(speaking):
    replies = [web.Response(status=503), web.Response(body=PCM, content_type="audio/pcm")]

    async def answer(request):
        return replies.pop(0)

    async with speaking(answer, backoff_s=0.01) as voice:
        assert await speak_whole(voice, "One sentence.") == PCM


async def test_a_service_that_asks_for_a_long_pause_is_not_waited_for(speaking):
    requests = []

    async def answer(request):
        requests.append(request)
        return web.Response(status=429, headers={"Retry-After": "60"})

    async with speaking(answer) as voice, asyncio.timeout(30):
        with pytest.raises(VoiceQuotaError):
            await speak_whole(voice, "One sentence.")
    assert len(requests) == 1


async def test_an_address_without_a_server_is_an_error(http):
    voice = HttpVoice(http=http, url="http://127.0.0.1:1/v1", model="m", voice="v", key=None, stall_s=60)
    with pytest.raises(VoiceUnreachableError, match="cannot be reached"):
        await speak_whole(voice, "One sentence.")


@pytest.mark.parametrize("sound", [b"", PCM], ids=["before any sound", "in the middle"])
async def test_a_service_that_stalls_is_an_error_after_the_limit(speaking, sound):
    async def answer(request):
        reply = await stream(request)
        await reply.write(sound)
        await asyncio.sleep(600)

    async with speaking(answer, stall_s=0.5) as voice:
        got = []
        with pytest.raises(VoiceStalledError, match=r"sent nothing for 0.5 s after"):
            async for piece in voice.speak("One sentence."):
                got.append(piece)
        assert b"".join(got) == sound


async def test_sound_sent_before_a_connection_breaks_is_spoken_and_the_request_not_repeated(speaking):
    requests = []

    async def answer(request):
        requests.append(request)
        reply = await stream(request)
        await reply.write(PCM)
        request.transport.close()
        return reply

    async with speaking(answer) as voice:
        got = []
        with pytest.raises(VoiceBrokenError, match=r"broke off after 0.2 s"):
            async for piece in voice.speak("One sentence."):
                got.append(piece)
        assert b"".join(got) == PCM and len(requests) == 1


async def test_endless_sound_is_cut_off(speaking):
    async def answer(request):
        reply = await stream(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await reply.write(bytes(1 << 16))
        return reply

    async with speaking(answer) as voice:
        with pytest.raises(VoiceFormatError, match="takes 20 s at the most"):
            await speak_whole(voice, "One sentence.")


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b'{"error": "no"}', "answered with application/json"),
        ("text/html", b"<html>", "answered with text/html"),
        ("audio/mpeg", b"ID3", "answered with audio/mpeg"),
        ("application/octet-stream", b"ID3" + bytes(100), "sent MP3"),
        ("audio/pcm", b"OggS" + bytes(100), "sent Ogg"),
        ("audio/wav", b"RIFF" + bytes(8), "without sound"),
        ("audio/wav", b"RIFF" + bytes(9_000), "without sound"),
        ("audio/pcm", b"", "sent no sound"),
    ],
)
async def test_an_answer_other_than_sound_is_refused_by_its_name(speaking, content_type, body, message):
    async def answer(request):
        return web.Response(body=body, content_type=content_type)

    async with speaking(answer) as voice:
        with pytest.raises(VoiceFormatError, match=message):
            await speak_whole(voice, "One sentence.")


async def test_leaving_the_generator_closes_the_connection(speaking):
    gone = asyncio.Event()

    async def answer(request):
        reply = await stream(request)
        try:
            while True:
                await reply.write(PCM)
                await asyncio.sleep(0.02)
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    async with speaking(answer) as voice, asyncio.timeout(30):
        pieces = voice.speak("One sentence.")
        await anext(pieces)
        await pieces.aclose()
        await gone.wait()

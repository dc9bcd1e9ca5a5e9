"""The TTS bridge when things go wrong or come at once: cancels behind speech, slow readers, voices that fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import aiohttp
import pytest
from aiohttp import web

from streaming.speech.protocol import (
    Encoding,
    Failure,
    Finished,
    SpeechAudio,
    SpeechCancel,
    SpeechEnd,
    SpeechStart,
    SpeechText,
    Started,
)
from streaming.voices.http_api import HttpVoice

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATES_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)


def buzz(samples: int, channels: int = 1) -> bytes:
    """So many samples of each channel."""
    return b"".join(
        (6_000 if i // 40 % 2 else -6_000).to_bytes(2, "little", signed=True) * channels for i in range(samples)
    )


@pytest.mark.slow
async def test_every_rate_and_channel_count_is_played_to_its_last_sample_in_order(serving):
    formats = list(itertools.product(RATES_HZ, (1, 2)))
    async with serving() as client, client.speech(await client.open_session()) as speech:
        for rate, channels in formats:
            name = f"{rate}/{channels}"
            pcm = buzz(rate // 5 + 7, channels)
            await speech.send(SpeechStart(name, rate, channels))
            for start in range(0, len(pcm), 1_000 * channels):
                await speech.send(SpeechAudio(name, pcm[start : start + 1_000 * channels]))
            await speech.send(SpeechEnd(name))
        finished = [await speech.receive_until(Finished) for _ in formats]
    assert finished == [Finished(f"{rate}/{channels}", rate // 5 + 7, False) for rate, channels in formats]


async def test_a_cancel_overtakes_the_speech_before_it_on_the_same_connection(serving):
    async with serving() as client, client.speech(await client.open_session()) as speech:
        await speech.send(SpeechStart("long", 8_000))
        minute = buzz(8_000) * 60
        for _ in range(2):  # far more than the session buffers
            await speech.send(SpeechAudio("long", minute))
        await speech.send(SpeechEnd("long"))
        await speech.send(SpeechStart("behind", 8_000))
        await speech.send(SpeechAudio("behind", minute))
        await speech.receive_until(Started)
        await speech.send(SpeechCancel())
        await speech.send(SpeechStart("next", 8_000))
        await speech.send(SpeechAudio("next", buzz(1_600)))
        await speech.send(SpeechEnd("next"))
        ended = {}
        while "next" not in ended:  # all that was cancelled would take minutes
            finished = await speech.receive_until(Finished)
            ended[finished.id] = finished
        assert ended["long"].interrupted and ended["long"].position_samples < 8_000 * 20
        assert ended["behind"] == Finished("behind", 0, True)
        assert ended["next"] == Finished("next", 1_600, False)


@pytest.mark.slow
async def test_a_client_that_reads_no_events_holds_up_nobody(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as deaf, client.speech(session) as speech:
            for n in range(3):
                await deaf.send(SpeechStart(f"deaf {n}", 16_000))
                await deaf.send(SpeechAudio(f"deaf {n}", buzz(1_600)))
                await deaf.send(SpeechEnd(f"deaf {n}"))

            async def provoke():  # each message is answered with an error, until nothing fits between the two any more
                while True:
                    await deaf.socket.send_str('{"type": "%s"}' % ("x" * 30))

            async with asyncio.TaskGroup() as tasks:
                provoking = tasks.create_task(provoke())
                for n in range(3):
                    assert (await speech.receive_until(Finished)).id == f"deaf {n}"
                await speech.send(SpeechText("after", "Yes, I am here."))
                assert (await speech.receive_until(Finished)).id == "after"
                provoking.cancel()


async def test_two_connections_speak_in_turn_and_hear_of_each_other(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as one, client.speech(session, Encoding.JSON) as other:
            await one.send(SpeechStart("one", 16_000))
            await one.send(SpeechAudio("one", buzz(6_400)))
            await one.receive_until(Started)
            await other.send(SpeechStart("other", 24_000))
            await other.send(SpeechAudio("other", buzz(4_800)))
            await other.send(SpeechEnd("other"))
            await other.send(SpeechEnd("one"))  # not theirs to end
            assert "not open on this connection" in (await other.receive_until(Failure)).message
            await one.send(SpeechEnd("one"))
            for speech in (one, other):
                assert [(await speech.receive_until(Finished)) for _ in range(2)] == [
                    Finished("one", 6_400, False),
                    Finished("other", 4_800, False),
                ]


@pytest.fixture
def speaking(serving):
    """`async with speaking(answer) as speech`: a session whose only voice is a local HTTP service."""

    @contextlib.asynccontextmanager
    async def serve(answer, stall_s=60.0):
        app = web.Application()
        app.router.add_post("/audio/speech", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession() as http:
                voice = HttpVoice(http=http, url=url, model="m", voice="v", key=None, stall_s=stall_s)
                async with (
                    serving(voices={"remote": voice}) as client,
                    client.speech(await client.open_session()) as speech,
                ):
                    yield speech
        finally:
            await runner.cleanup()

    return serve


async def streamed(request):
    reply = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
    await reply.prepare(request)
    return reply


async def test_a_cancel_hangs_up_on_a_remote_voice_that_is_silent_and_the_next_text_is_spoken(speaking):
    gone, asked = asyncio.Event(), []

    async def answer(request):
        asked.append((await request.json())["input"])
        if len(asked) > 1:
            return web.Response(body=buzz(4_800), content_type="audio/pcm")
        reply = await streamed(request)
        await reply.write(buzz(24_000))
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            gone.set()
            raise
        return reply

    async with speaking(answer) as speech:
        await speech.send(SpeechText("first", "A sentence that is never finished. And another one.", "remote"))
        await speech.receive_until(Started)
        await speech.send(SpeechCancel())
        assert (await speech.receive_until(Finished)).interrupted
        async with asyncio.timeout(30):
            await gone.wait()
        await speech.send(SpeechText("second", "A good one.", "remote"))
        assert await speech.receive_until(Finished) == Finished("second", 4_800, False)
        assert asked == ["A sentence that is never finished.", "A good one."]


@pytest.mark.slow
async def test_the_first_sentence_is_heard_while_the_second_is_not_made(speaking):
    go_on = asyncio.Event()

    async def answer(request):
        if "second" in (await request.json())["input"]:
            await go_on.wait()
        return web.Response(body=buzz(24_000), content_type="audio/pcm")

    async with speaking(answer) as speech:
        await speech.send(SpeechText("t", "The first sentence is here. The second sentence follows.", "remote"))
        await speech.receive_until(Started)
        go_on.set()
        assert await speech.receive_until(Finished) == Finished("t", 48_000, False)


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        ("stalls", "voice-stalled", True),
        ("dies", "voice-broken", True),
        ("garbage", "voice-format", False),
        ("401", "voice-auth", False),
        ("402", "voice-quota", True),
    ],
)
async def test_a_voice_that_fails_is_a_typed_error_and_what_it_said_is_played_to_its_end(
    speaking, fault, code, retryable
):
    async def answer(request):
        if fault.isdigit():
            return web.Response(status=int(fault))
        if fault == "garbage":
            return web.Response(body=b"ID3" + bytes(5_000), content_type="audio/pcm")
        reply = await streamed(request)
        await reply.write(buzz(12_000))
        if fault == "stalls":
            await asyncio.sleep(600)
        request.transport.close()
        return reply

    async with speaking(answer, stall_s=1.0 if fault == "stalls" else 60.0) as speech:
        await speech.send(SpeechText("t", "One sentence alone.", "remote"))
        received = {}
        while not {Failure, Finished} <= set(received):
            message = await speech.receive()
            received[type(message)] = message
        assert (received[Failure].code, received[Failure].retryable) == (code, retryable)
        sound = 12_000 if fault in ("stalls", "dies") else 0
        assert received[Finished] == Finished("t", sound, False)


class SlowlyLeftVoice:
    """Speaks without an end; leaving it takes longer than the report of the barge-in."""

    sample_rate_hz = 16_000

    def __init__(self):
        self.left = []

    async def speak(self, text):
        try:
            while True:
                yield buzz(1_600)
                await asyncio.sleep(0.05)
        finally:
            await asyncio.sleep(0.5)
            self.left.append(text)


@pytest.mark.slow
async def test_a_voice_that_is_cancelled_completes_its_closing(serving):
    voice = SlowlyLeftVoice()
    async with (
        serving(voices={"slow": voice}) as client,
        client.speech(await client.open_session()) as speech,
        asyncio.timeout(60),
    ):
        await speech.send(SpeechText("one", "One."))
        await speech.receive_until(Started)
        await speech.send(SpeechCancel())
        assert (await speech.receive_until(Finished)).interrupted
        await speech.send(SpeechText("two", "Two."))
        await speech.receive_until(Started)
        assert voice.left == ["One."]

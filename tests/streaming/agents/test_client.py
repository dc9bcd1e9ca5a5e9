"""The Python client and the units websocket on a real server: speech comes back in units, in order."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from engine.errors import CapacityError, SessionClosedError, UnknownAvatarError
from streaming.agents.client import open_avatar
from streaming.server.session_events import CLOSED
from streaming.speech.protocol import Failure, Finished, Started, Unit

pytestmark = pytest.mark.asyncio(loop_scope="session")


def tone(seconds: float) -> bytes:
    at = np.arange(int(seconds * 24_000)) / 24_000
    return (8_000 * np.sin(2 * np.pi * 440 * at)).astype("<i2").tobytes()


async def test_speech_comes_back_between_its_events_with_a_picture_for_every_sound(serving):
    async with serving() as client, open_avatar(client.server.url, "speaker") as avatar:
        assert avatar.ready.width == 512 and "en-us" in avatar.ready.voices
        await avatar.speak(tone(0.5), 24_000, 1)
        await avatar.speak(tone(0.5), 24_000, 1)
        await avatar.finish()
        sounds, pictures, begun = [], 0, None
        async with asyncio.timeout(60):
            async for message in avatar:
                if isinstance(message, Unit):
                    assert len(message.samples) == 2 * 1920
                    assert message.picture is None or len(message.picture) == 512 * 512 * 3
                    if message.speaking:
                        assert begun is not None
                        sounds.append(message.samples)
                        pictures += message.picture is not None
                elif isinstance(message, Started):
                    begun = message
                elif isinstance(message, Finished):
                    break
        assert message == Finished("utterance 1", 24_000, False) and begun.id == "utterance 1"
        assert len(sounds) == 25 and pictures > 0
        sound = np.frombuffer(b"".join(sounds), "<i2").astype(float)
        assert 5_000 < np.sqrt(np.mean(sound[4_800:-4_800] ** 2)) < 6_500  # the tone, at its own loudness


@pytest.mark.slow
async def test_no_unit_with_speech_from_before_an_interruption_comes_after_it(serving):
    async with serving() as client, open_avatar(client.server.url, "speaker") as avatar:
        await avatar.speak(tone(5), 24_000, 1)
        async with asyncio.timeout(60):
            speaking = 0
            async for message in avatar:
                speaking += isinstance(message, Unit) and message.speaking
                if speaking == 5:
                    break
            await asyncio.sleep(0.2)  # units wait to be read
            await avatar.interrupt()
            silent = 0
            async for message in avatar:
                if isinstance(message, Unit):
                    assert not message.speaking
                    silent += 1
                elif isinstance(message, Finished):
                    assert message.interrupted
                if silent == 5:
                    break
            await avatar.speak(tone(0.4), 24_000, 1)
            await avatar.finish()
            async for message in avatar:
                if isinstance(message, Finished) and not message.interrupted:
                    break


async def test_a_refused_text_is_a_failure_among_the_messages(serving):
    async with serving() as client, open_avatar(client.server.url, "speaker") as avatar:
        await avatar.say("Hello.", voice="klingon")
        async with asyncio.timeout(60):
            async for message in avatar:
                if isinstance(message, Failure):
                    assert message.code == "voice"
                    break


async def test_an_unknown_avatar_a_full_server_and_no_server_are_errors_of_their_own(serving, max_sessions):
    async with serving() as client:
        with pytest.raises(UnknownAvatarError, match="no avatar 'nobody'"):
            async with open_avatar(client.server.url, "nobody"):
                pass
        for _ in range(max_sessions):
            await client.open_session()
        with pytest.raises(CapacityError):
            async with open_avatar(client.server.url, "speaker"):
                pass
    with pytest.raises(SessionClosedError, match="is `personastream serve` running"):
        async with open_avatar("http://127.0.0.1:1", "speaker"):
            pass


async def test_a_session_that_ends_ends_the_iteration_and_refuses_speech(serving):
    async with serving() as client, open_avatar(client.server.url, "speaker") as avatar:
        (live_session,) = client.server.live_sessions
        await live_session.session.close()
        async with asyncio.timeout(60):
            async for _ in avatar:
                pass
        with pytest.raises(SessionClosedError):
            await avatar.speak(tone(0.1), 24_000, 1)


@pytest.mark.slow
async def test_a_session_that_ends_while_units_wait_for_their_reader_ends_the_iteration(serving):
    async with serving() as client, open_avatar(client.server.url, "speaker") as avatar, asyncio.timeout(60):
        async for _ in avatar:
            break
        await asyncio.sleep(1.5)  # more units than the client keeps
        (live_session,) = client.server.live_sessions
        await live_session.close(CLOSED)
        await asyncio.sleep(0.5)  # the speech websocket closes, which closes the client's full queue
        async for _ in avatar:
            pass

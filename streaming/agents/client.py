"""A client of a personastream server for programs in Python: speech in, units and playback events out.

It needs aiohttp and msgpack and nothing of the engine, so that agents can use it from an environment of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError, UnknownAvatarError
from engine.queues import MediaQueue, Policy
from streaming.speech.protocol import (
    MAX_SERVER_MESSAGE_BYTES,
    ClientMessage,
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
    Unit,
    decode_server,
    encode,
)

PIECE_BYTES = 1 << 16  # of sound in one message
BACKLOG = 25
CONNECT_S = 10.0
REFUSALS: dict[str, type[PersonaStreamError]] = {"unknown-avatar": UnknownAvatarError, "capacity": CapacityError}

AvatarMessage = Unit | Started | Finished | Failure


class AvatarClient:
    """One session, opened by `open_avatar`. Iterate over it for what the avatar shows and says, 25 units a second.

    One utterance is spoken at a time: `speak` begins it and goes on with it, `finish` ends it, `interrupt` cuts it off.
    """

    def __init__(self, speech: aiohttp.ClientWebSocketResponse, units: aiohttp.ClientWebSocketResponse):
        self._speech, self._units = speech, units
        self._messages: MediaQueue[AvatarMessage] = MediaQueue(BACKLOG, Policy.WAIT)
        self._names = itertools.count(1)
        self._speaking: str | None = None
        self._interrupted = False  # units that were on their way when the avatar was interrupted may still come
        self.ready: SessionReady | None = None

    async def speak(self, pcm: bytes, sample_rate_hz: int, channels: int) -> None:
        """Continue the utterance, or begin one, with s16le sound. SessionClosedError."""
        if self._speaking is None:
            self._speaking = f"utterance {next(self._names)}"
            await self._send(SpeechStart(self._speaking, sample_rate_hz, channels))
        for start in range(0, len(pcm), PIECE_BYTES):
            await self._send(SpeechAudio(self._speaking, pcm[start : start + PIECE_BYTES]))

    async def finish(self) -> None:
        """The utterance is complete; nothing if there is none."""
        if self._speaking is not None:
            name, self._speaking = self._speaking, None
            await self._send(SpeechEnd(name))

    async def say(self, text: str, voice: str | None = None) -> None:
        """An utterance in a voice of the server."""
        await self._send(SpeechText(f"utterance {next(self._names)}", text, voice))

    async def interrupt(self) -> None:
        """Barge-in: everything said or waiting is dropped, and no unit with speech of before comes out any more."""
        self._speaking, self._interrupted = None, True
        await self._send(SpeechCancel())

    async def __aiter__(self) -> AsyncIterator[AvatarMessage]:
        async for message in self._messages:
            if isinstance(message, Unit) and self._interrupted:
                if message.speaking:
                    continue
                self._interrupted = False
            yield message

    async def _send(self, message: ClientMessage) -> None:
        try:
            data = encode(message, Encoding.MSGPACK)
            assert isinstance(data, bytes)
            await self._speech.send_bytes(data)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise SessionClosedError(f"the avatar's session is closed ({error}); open another one") from error

    async def read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Read one of the two websockets until it closes; playback is told on the one that has the units."""
        async for message in socket:
            if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                break
            found = decode_server(message.data)
            if isinstance(found, SessionReady):
                self.ready = found
            elif isinstance(found, Failure) or (socket is self._units and isinstance(found, Unit | Started | Finished)):
                await self._messages.put(found)
        await self._messages.close()


@contextlib.asynccontextmanager
async def open_avatar(url: str, avatar: str, key: str | None = None) -> AsyncIterator[AvatarClient]:
    """A session of `avatar` on the server at `url` for the time of the block; `key` is a server key where it needs one.

    Raises UnknownAvatarError, CapacityError, PersonaStreamError for other refusals, SessionClosedError for no server.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(url, timeout=timeout))
        try:
            session = await _open_session(http, avatar, headers)
            bearer = {"Authorization": f"Bearer {session['token']}"}
            path = f"/v1/sessions/{session['id']}"
            stack.push_async_callback(_close_session, http, path, bearer)
            # A unit is too large for the default limit; compression would only cost time on one machine.
            limit = MAX_SERVER_MESSAGE_BYTES
            units = await stack.enter_async_context(
                http.ws_connect(f"{path}/units", headers=bearer, max_msg_size=limit)
            )
            ready = decode_server(await units.receive_bytes(timeout=CONNECT_S))
            speech = await stack.enter_async_context(http.ws_connect(f"{path}/speech", headers=bearer))
        except (aiohttp.ClientError, OSError) as error:
            raise SessionClosedError(
                f"{url} cannot be spoken to ({error}); is `personastream serve` running?"
            ) from error
        client = AvatarClient(speech, units)
        if not isinstance(ready, SessionReady):
            raise ProtocolError(f"{url} began with {type(ready).__name__}, expected session.ready; is it up to date?")
        client.ready = ready
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(client.read(socket)) for socket in (speech, units)]
            try:
                yield client
            finally:
                for reader in readers:
                    reader.cancel()


async def _open_session(http: aiohttp.ClientSession, avatar: str, headers: dict[str, str]) -> dict[str, Any]:
    async with http.post("/v1/sessions", json={"avatar": avatar}, headers=headers) as reply:
        body = await reply.text()
    try:
        found = json.loads(body)
        assert isinstance(found, dict)
    except (ValueError, AssertionError):
        raise ProtocolError(f"{reply.url} answered {body[:80]!r}; expected a personastream server") from None
    if reply.status != 201:
        kind = REFUSALS.get(found.get("code", ""), PersonaStreamError)
        raise kind(f"{found.get('detail', reply.reason)} ({reply.status})")
    return found


async def _close_session(http: aiohttp.ClientSession, path: str, bearer: dict[str, str]) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_S), http.delete(path, headers=bearer):
            pass

"""A client of a personastream server: speech in, units and playback events out.

It needs aiohttp, msgpack, msgspec and websockets, and of the engine only `errors` and `queues`. Agents can use it in an
environment without the engine's libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from engine.errors import CapacityError, PersonaStreamError, ProtocolError, SessionClosedError, UnknownAvatarError
from engine.queues import MediaQueue, Policy, QueueClosed
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
from streaming.websocket_client import close_websocket, open_websocket

PIECE_BYTES = 1 << 16  # of sound in one message
MAX_AHEAD_S = 60.0  # of sound sent before its time; the server refuses what it has no room for
BACKLOG = 25
CONNECT_S = 10.0
REFUSALS: dict[str, type[PersonaStreamError]] = {"unknown-avatar": UnknownAvatarError, "capacity": CapacityError}

AvatarMessage = Unit | Started | Finished | Failure


class AvatarClient:
    """One session, opened by `open_avatar`. Iterate over it for its units, 25 a second, and its playback events.

    One utterance is spoken at a time: `speak` begins and continues it, `finish` completes it, `interrupt` drops it.
    """

    def __init__(self, ready: SessionReady, speech: ClientConnection, units: ClientConnection):
        self.ready = ready
        self._speech, self._units = speech, units
        self._messages: MediaQueue[AvatarMessage] = MediaQueue(BACKLOG, Policy.WAIT)
        self._names = itertools.count(1)
        self._speaking: str | None = None
        self._played_s = 0.0  # the loop time at which all sound sent so far has been played, at the earliest
        self._interrupted = False  # units sent before the interruption may still arrive

    async def speak(self, pcm: bytes, sample_rate_hz: int, channels: int) -> None:
        """Continue the utterance, or begin one, with s16le sound; waits while MAX_AHEAD_S of it are still to be played.
        After `interrupt` the rest is not sent.

        Raises SessionClosedError.
        """
        if self._speaking is None:
            self._speaking = f"utterance {next(self._names)}"
            await self._send(SpeechStart(self._speaking, sample_rate_hz, channels))
        utterance, loop = self._speaking, asyncio.get_running_loop()
        for start in range(0, len(pcm), PIECE_BYTES):
            await asyncio.sleep(self._played_s - loop.time() - MAX_AHEAD_S)
            if self._speaking != utterance:
                return
            piece = pcm[start : start + PIECE_BYTES]
            await self._send(SpeechAudio(utterance, piece))
            self._played_s = max(self._played_s, loop.time()) + len(piece) / (2 * channels * sample_rate_hz)

    async def finish(self) -> None:
        """Complete the utterance, if there is one. Raises SessionClosedError."""
        if self._speaking is not None:
            name, self._speaking = self._speaking, None
            await self._send(SpeechEnd(name))

    async def say(self, text: str, voice: str | None = None) -> None:
        """Speak `text` in a voice of the server, or in its first one. Raises SessionClosedError."""
        await self._send(SpeechText(f"utterance {next(self._names)}", text, voice))

    async def interrupt(self) -> None:
        """Barge-in: drop all speech, spoken or waiting. Units with that speech are no longer returned.

        Raises SessionClosedError.
        """
        self._speaking, self._interrupted, self._played_s = None, True, 0.0
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
            await self._speech.send(encode(message, Encoding.MSGPACK))
        except ConnectionClosed as error:
            raise SessionClosedError(f"the avatar's session is closed ({error}); open another one") from error

    async def read(self, socket: ClientConnection) -> None:
        """Read one of the two websockets until either closes. Playback events come from the units websocket."""
        try:
            with contextlib.suppress(ConnectionClosed, QueueClosed):  # the end of the other websocket closes the queue
                async for data in socket:
                    message = decode_server(data)
                    if isinstance(message, Failure) or (
                        socket is self._units and isinstance(message, Unit | Started | Finished)
                    ):
                        await self._messages.put(message)
        finally:
            await self._messages.close()


@contextlib.asynccontextmanager
async def open_avatar(url: str, avatar: str, key: str | None = None) -> AsyncIterator[AvatarClient]:
    """A session of `avatar` on the server at `url` during the block; `key`: a server key, if the server requires one.

    Raises UnknownAvatarError, CapacityError, PersonaStreamError for other refusals, SessionClosedError if no server
    answers within CONNECT_S.
    """
    url = url.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=CONNECT_S)
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(url, timeout=timeout))
        try:
            session = await _open_session(http, avatar, headers)
            bearer = {"Authorization": f"Bearer {session['token']}"}
            at = session.get("url") or f"{url}/v1/sessions/{session['id']}"  # a cluster names the node's address
            stack.push_async_callback(_close_session, http, at, bearer)
            units = await stack.enter_async_context(_websocket(f"{at}/units", bearer))
            speech = await stack.enter_async_context(_websocket(f"{at}/speech", bearer))
            async with asyncio.timeout(CONNECT_S):
                ready = decode_server(await speech.recv())  # the one of the units websocket names no voices
        except (aiohttp.ClientError, WebSocketException, OSError) as error:
            raise SessionClosedError(
                f"{url} cannot be reached ({error or type(error).__name__}); is `personastream serve` running?"
            ) from error
        if not isinstance(ready, SessionReady):
            raise ProtocolError(f"{url} began with {type(ready).__name__}, expected session.ready; is it up to date?")
        client = AvatarClient(ready, speech, units)
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(client.read(socket)) for socket in (speech, units)]
            try:
                yield client
            finally:
                for reader in readers:
                    reader.cancel()


@contextlib.asynccontextmanager
async def _websocket(url: str, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    socket = await open_websocket(url, headers, max_message_bytes=MAX_SERVER_MESSAGE_BYTES, timeout_s=CONNECT_S)
    try:
        yield socket
    finally:
        await close_websocket(socket, CONNECT_S)


async def _open_session(http: aiohttp.ClientSession, avatar: str, headers: dict[str, str]) -> dict[str, Any]:
    async with http.post("/v1/sessions", json={"avatar": avatar}, headers=headers) as reply:
        body = await reply.text()
    try:
        session = json.loads(body)
    except ValueError:
        session = None
    if not isinstance(session, dict):
        raise ProtocolError(f"{reply.url} answered {body[:80]!r}; expected a personastream server")
    if reply.status != 201:
        kind = REFUSALS.get(session.get("code", ""), PersonaStreamError)
        raise kind(f"{session.get('detail', reply.reason)} ({reply.status})")
    return session


async def _close_session(http: aiohttp.ClientSession, at: str, bearer: dict[str, str]) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_S), http.delete(at, headers=bearer):
            pass

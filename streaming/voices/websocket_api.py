"""Remote voices over a websocket: Cartesia, Deepgram and ElevenLabs, each one a `Service`.

Each text has a separate connection: all its sentences are sent at once, and the sound streams back. Leaving the
generator closes the connection, and the service stops.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from streaming.errors import VoiceBrokenError, VoiceError, VoiceFormatError, VoiceStalledError, VoiceUnreachableError
from streaming.voices.http_status import status_error
from streaming.voices.sentences import sentences
from streaming.voices.voice import SampleCutter
from streaming.websocket_client import close_websocket, open_websocket

ServiceName = Literal["cartesia", "deepgram", "elevenlabs"]
MAX_MESSAGE_BYTES = 4 << 20
PIECE_BYTES = 1 << 15
CLOSE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Service:
    """The protocol of one service.

    path: after the address, with {model}, {voice} and {rate}.  key: name of the header and prefix of the key in it.
    requests: the messages for the sentences of a text.  sound: the field that holds sound as base64, None where sound
    comes in binary messages.  end: the field and value that mark the last message.
    """

    url: str
    path: str
    key: tuple[str, str]
    headers: dict[str, str]
    requests: Callable[[WebsocketVoice, list[str]], list[dict[str, Any]]]
    sound: str | None
    end: tuple[str, Any]


def _cartesia(voice: WebsocketVoice, texts: list[str]) -> list[dict[str, Any]]:
    common = {
        "model_id": voice.model,
        "voice": {"mode": "id", "id": voice.voice},
        "output_format": {"container": "raw", "encoding": "pcm_s16le", "sample_rate": voice.sample_rate_hz},
        "context_id": "1",  # one context a connection
    }
    last = len(texts) - 1
    return [{**common, "transcript": f"{text} ", "continue": n < last} for n, text in enumerate(texts)]


def _deepgram(voice: WebsocketVoice, texts: list[str]) -> list[dict[str, Any]]:
    return [*({"type": "Speak", "text": f"{text} "} for text in texts), {"type": "Flush"}]


def _elevenlabs(voice: WebsocketVoice, texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": " "}, *({"text": f"{text} ", "flush": n == 0} for n, text in enumerate(texts)), {"text": ""}]


SERVICES: dict[ServiceName, Service] = {
    "cartesia": Service(
        url="wss://api.cartesia.ai",
        path="/tts/websocket",
        key=("X-API-Key", ""),
        headers={"Cartesia-Version": "2025-04-16"},
        requests=_cartesia,
        sound="data",
        end=("type", "done"),
    ),
    "deepgram": Service(
        url="wss://api.deepgram.com",
        path="/v1/speak?model={voice}&encoding=linear16&sample_rate={rate}",
        key=("Authorization", "Token "),
        headers={},
        requests=_deepgram,
        sound=None,
        end=("type", "Flushed"),
    ),
    "elevenlabs": Service(
        url="wss://api.elevenlabs.io",
        path="/v1/text-to-speech/{voice}/stream-input?model_id={model}&output_format=pcm_{rate}",
        key=("xi-api-key", ""),
        headers={},
        requests=_elevenlabs,
        sound="audio",
        end=("isFinal", True),
    ),
}


@dataclass(frozen=True, kw_only=True)
class WebsocketVoice:
    """One voice of one service. `url` replaces the service's address; `stall_s`: the longest time without a message."""

    service: ServiceName
    url: str
    model: str
    voice: str
    key: str
    stall_s: float
    sample_rate_hz: int = 24_000

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice."""
        async with contextlib.aclosing(self._speak(SERVICES[self.service], text)) as pieces:
            async for pcm in pieces:
                yield pcm

    async def _speak(self, service: Service, text: str) -> AsyncGenerator[bytes, None]:
        cutter = SampleCutter(self.voice, text, self.sample_rate_hz)
        socket = await self._connect(service)
        try:
            for request in service.requests(self, sentences(text)):
                await self._send(socket, request)
            while (sound := await self._receive(socket, service, cutter.seconds)) is not None:
                pcm = cutter.push(sound)
                for start in range(0, len(pcm), PIECE_BYTES):
                    yield pcm[start : start + PIECE_BYTES]
        finally:
            await close_websocket(socket, CLOSE_S)
        if not cutter.seconds:
            raise VoiceFormatError(f"{self.service} sent no sound for voice {self.voice!r}; try another voice")

    async def _connect(self, service: Service) -> ClientConnection:
        path = service.path.format(model=quote(self.model), voice=quote(self.voice), rate=self.sample_rate_hz)
        name, prefix = service.key
        headers = {**service.headers, name: f"{prefix}{self.key}"}
        where = self.url or service.url
        try:
            return await open_websocket(
                f"{where}{path}", headers, max_message_bytes=MAX_MESSAGE_BYTES, timeout_s=self.stall_s
            )
        except TimeoutError:
            raise VoiceStalledError(f"{where} gave no answer for {self.stall_s:g} s; try again") from None
        except InvalidStatus as error:
            raise status_error(where, error.response.status_code, error.response.reason_phrase) from error
        except (WebSocketException, OSError) as error:
            raise VoiceUnreachableError(
                f"{where} cannot be reached ({error or type(error).__name__}); check the address and the network"
            ) from error

    async def _send(self, socket: ClientConnection, request: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self.stall_s):
                with contextlib.suppress(ConnectionClosed):  # `_receive` reports it, after the sound before it
                    await socket.send(json.dumps(request))
        except TimeoutError:
            raise VoiceStalledError(f"{self.service} took no text for {self.stall_s:g} s; try again") from None

    async def _receive(self, socket: ClientConnection, service: Service, heard_s: float) -> bytes | None:
        """The sound of the next message, empty where it carries none; None at the end."""
        try:
            async with asyncio.timeout(self.stall_s):
                message = await socket.recv()
        except TimeoutError:
            raise VoiceStalledError(
                f"{self.service} sent nothing for {self.stall_s:g} s after {heard_s:.1f} s of sound; "
                "send the rest again"
            ) from None
        except ConnectionClosed as error:
            raise VoiceBrokenError(
                f"{self.service} closed the connection ({error}) after {heard_s:.1f} s of sound; "
                "the sound before that is spoken, send the rest of the text again"
            ) from error
        if isinstance(message, str):
            return read_message(service, self.service, message)
        if service.sound is not None:
            raise VoiceFormatError(f"{self.service} sent a binary message, expected JSON; check its address")
        return message


def read_message(service: Service, name: str, data: str) -> bytes | None:
    """The sound in one text message of a service, empty where it carries none; None for the last message."""
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        sound = fields.get(service.sound) if service.sound else None
        pcm = base64.b64decode(sound, validate=True) if sound else b""
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise VoiceFormatError(f"{name} sent {data[:60]!r} ({error}), expected JSON; check its address") from None
    if fields.get("error") or str(fields.get("type")).lower() == "error":
        reason = fields.get("error") or fields.get("description") or fields.get("message")
        raise VoiceError(f"{name} refused the text ({reason!r:.300}); check model, voice and key")
    key, value = service.end
    return None if fields.get(key) == value and not pcm else pcm

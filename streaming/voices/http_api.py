"""Remote voices over HTTP: `POST {url}/audio/speech`, the form of OpenAI's API, which many servers implement.

The answer is s16le mono, bare or as WAV, streamed while it is made. Each sentence is one request, sent when the sound
of the one before has been taken. A request is repeated only before its first byte of sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp

from streaming.errors import VoiceBrokenError, VoiceError, VoiceFormatError, VoiceStalledError, VoiceUnreachableError
from streaming.voices.http_status import status_error
from streaming.voices.sentences import sentences
from streaming.voices.voice import SampleCutter

SOUND_TYPES = frozenset(
    ["audio/pcm", "audio/l16", "audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave", "application/octet-stream"]
)
# Some servers send these formats for any `response_format`; by their first bytes.
OTHER_FORMATS = {b"ID3": "MP3", b"OggS": "Ogg", b"fLaC": "FLAC", b"\xff\xfb": "MP3", b"\xff\xf3": "MP3", b"{": "JSON"}
ATTEMPTS = 3
MAX_RETRY_AFTER_S = 3.0  # a longer pause is an error: the user waits for an answer
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_HEADER_BYTES = 4_096


@dataclass(frozen=True, kw_only=True)
class HttpVoice:
    """One voice of one service. `key` is sent as a bearer token; `stall_s`: the longest time without data;
    `backoff_s`: the pause before the second attempt, twice that before the third."""

    http: aiohttp.ClientSession
    url: str
    model: str
    voice: str
    key: str | None
    stall_s: float
    sample_rate_hz: int = 24_000
    backoff_s: float = 0.3

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice. Raises subclasses of VoiceError, by the remedy."""
        for sentence in sentences(text):
            async with contextlib.aclosing(self._speak(sentence)) as pieces:
                async for pcm in pieces:
                    yield pcm

    async def _speak(self, text: str) -> AsyncGenerator[bytes, None]:
        reply = await self._request(text)
        cutter = SampleCutter(self.voice, text, self.sample_rate_hz)
        try:
            first = await self._skip_header(reply)
            while first or not reply.content.at_eof():
                if pcm := cutter.push(first or await self._read(reply, cutter.seconds)):
                    yield pcm
                first = b""
        finally:
            reply.close()  # and the connection: the service must stop an answer that is no longer read
        if not cutter.seconds:
            raise VoiceFormatError(f"voice {self.voice!r} of {self.url} sent no sound; try another text or voice")

    async def _request(self, text: str) -> aiohttp.ClientResponse:
        """The answer, before any of its body. A temporary failure is tried ATTEMPTS times."""
        for attempt in range(ATTEMPTS):
            pause_s = self.backoff_s * 2**attempt
            try:
                reply = await self._post(text)
            except VoiceUnreachableError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                if reply.status == 200:
                    return self._checked(reply)
                error, retry_after_s = await _refused(self, reply)
                if reply.status not in TRY_AGAIN or attempt == ATTEMPTS - 1 or retry_after_s > MAX_RETRY_AFTER_S:
                    raise error
                pause_s = max(pause_s, retry_after_s)
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, text: str) -> aiohttp.ClientResponse:
        body = {"model": self.model, "voice": self.voice, "input": text, "response_format": "pcm"}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            async with asyncio.timeout(self.stall_s):
                return await self.http.post(f"{self.url}/audio/speech", json=body, headers=headers)
        except TimeoutError:
            raise VoiceStalledError(
                f"{self.url} gave no answer for {self.stall_s:g} s; try again, or another service"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise VoiceUnreachableError(
                f"{self.url} cannot be reached ({error or type(error).__name__}); check the address and the network"
            ) from error

    def _checked(self, reply: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        if reply.content_type.lower() not in SOUND_TYPES:
            reply.close()
            raise VoiceFormatError(
                f"{self.url} answered with {reply.content_type}, expected audio/pcm or audio/wav; check that it is the "
                "base of an OpenAI-compatible API, such as https://api.openai.com/v1"
            )
        return reply

    async def _skip_header(self, reply: aiohttp.ClientResponse) -> bytes:
        """The first bytes of sound, after the WAV header if there is one. VoiceFormatError for any other container."""
        head = b""
        while len(head) < 12 and not reply.content.at_eof():
            head += await self._read(reply, 0.0)
        for magic, name in OTHER_FORMATS.items():
            if head.startswith(magic):
                raise VoiceFormatError(f"{self.url} sent {name}, expected s16le or WAV; ask it for `pcm`")
        if not head.startswith(b"RIFF"):
            return head
        while True:
            offset = wav_data_offset(head, self.sample_rate_hz, self.url)
            if offset is not None and len(head) > offset:
                return head[offset:]
            if reply.content.at_eof() or len(head) > MAX_HEADER_BYTES:
                raise VoiceFormatError(f"{self.url} sent a WAV header without sound; ask it for `pcm`")
            head += await self._read(reply, 0.0)

    async def _read(self, reply: aiohttp.ClientResponse, heard_s: float) -> bytes:
        """The next bytes; none at the end."""
        try:
            async with asyncio.timeout(self.stall_s):
                return await reply.content.readany()
        except TimeoutError:
            raise VoiceStalledError(
                f"{self.url} sent nothing for {self.stall_s:g} s after {heard_s:.1f} s of sound; send the rest again"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise VoiceBrokenError(
                f"{self.url} broke off after {heard_s:.1f} s of sound ({error or type(error).__name__}); the "
                "sound before that is spoken, send the rest of the text again"
            ) from error


def wav_data_offset(head: bytes, sample_rate_hz: int, source: str) -> int | None:
    """The byte at which the samples of a WAV file begin, or None while its header `head` is not complete.

    `source` is its name in error messages. VoiceFormatError for sound other than s16le mono at `sample_rate_hz`.
    """
    at = 12
    while len(head) >= at + 8:
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"data":
            return at + 8
        if name == b"fmt ":
            if len(head) < at + 24:
                return None
            kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
            if (kind, channels, rate_hz, bits) != (1, 1, sample_rate_hz, 16):
                raise VoiceFormatError(
                    f"{source} sent WAV with {channels} channels of {bits} bits at {rate_hz} Hz, expected s16le mono "
                    f"at {sample_rate_hz} Hz; set the rate that the service uses"
                )
        at += 8 + size + size % 2
    return None


async def _refused(voice: HttpVoice, reply: aiohttp.ClientResponse) -> tuple[VoiceError, float]:
    """The error for a status other than 200, and the seconds of the Retry-After header (RFC 9110, §10.2.3)."""
    reason = ""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(voice.stall_s):
            reason = (await reply.content.read(300)).decode("utf-8", "replace").strip()
    reply.close()
    try:
        retry_after_s = float(reply.headers.get("Retry-After", 0))
    except ValueError:  # a date, which services use for long pauses
        retry_after_s = float("inf")
    return status_error(voice.url, reply.status, reason or str(reply.reason)), retry_after_s

"""Text to speech sound. A voice is anything that turns text into a stream of PCM; eSpeak NG is the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import struct
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from engine.errors import VoiceError

CHUNK_BYTES = 4_096  # 93 ms at 22.05 kHz
START_TIMEOUT_S = 10.0


class Voice(Protocol):
    """Speaks text as s16le mono at its own sample rate, in pieces as they are made."""

    @property
    def sample_rate_hz(self) -> int: ...

    def speak(self, text: str) -> AsyncGenerator[bytes, None]: ...


@dataclass(frozen=True)
class EspeakVoice:
    """One language of eSpeak NG, run as a child process: it is under the GPL, so only pipes join it to us."""

    language: str
    sample_rate_hz: int = 22_050  # what every eSpeak NG voice without MBROLA makes; checked against its header

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        command = espeak_command(self.language)
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise VoiceError(
                f"{command[0]} does not start ({error.strerror or error}); check that it can be executed and that the "
                "limits of processes and open files leave room for it"
            ) from error
        assert child.stdin and child.stdout and child.stderr
        try:
            # The text is at most a few pages, less than a pipe holds, so writing it never waits for reading sound.
            child.stdin.write(text.encode())
            child.stdin.close()
            await self._skip_header(child.stdout, child.stderr)
            odd = b""
            while piece := await child.stdout.read(CHUNK_BYTES):
                piece = odd + piece
                whole = len(piece) // 2 * 2
                odd = piece[whole:]
                if whole:
                    yield piece[:whole]
            if code := await child.wait():
                said = (await child.stderr.read(500)).decode("utf-8", "replace").strip() or "without a word"
                raise VoiceError(
                    f"voice {self.language!r} stopped with exit code {code} ({said}); what it had said is spoken, "
                    "send the rest again or try another voice"
                )
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            await child.wait()

    async def _skip_header(self, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                header = await stdout.readexactly(44)
        except (asyncio.IncompleteReadError, TimeoutError):
            said = (await stderr.read(500)).decode("utf-8", "replace").strip() if stdout.at_eof() else "no answer"
            raise VoiceError(f"voice {self.language!r} made no sound ({said}); try another voice") from None
        (found,) = struct.unpack_from("<I", header, 24)
        if not header.startswith(b"RIFF") or found != self.sample_rate_hz:
            raise VoiceError(
                f"voice {self.language!r} speaks at {found} Hz, expected {self.sample_rate_hz} Hz; try another voice"
            )


def espeak_command(language: str) -> list[str]:
    """The command line that reads text and writes WAV: the program where it is installed, else the wheel's library."""
    program = shutil.which("espeak-ng")
    if program:
        return [program, "--stdout", "--stdin", "-v", language]
    if importlib.util.find_spec("espeakng_loader"):
        return [sys.executable, "-m", "streaming.espeak", language]
    raise VoiceError(
        "no eSpeak NG found; run `pip install espeakng-loader`, or install your system's espeak-ng package"
    )


def default_voices() -> dict[str, Voice]:
    """The embedded voices by name; the first is the default. Add your own to the mapping that you give the server."""
    languages = ("en-us", "en-gb", "de", "es", "fr-fr", "it", "pt-br", "nl", "pl", "ru", "tr", "hi", "cmn", "sv")
    return {language: EspeakVoice(language) for language in languages}


def find_voice(voices: Mapping[str, Voice], name: str | None) -> Voice:
    """The voice of that name, or the default; VoiceError lists what there is."""
    if not voices:
        raise VoiceError("this server has no voice; send sound instead (speech.start)")
    if name is None:
        return next(iter(voices.values()))
    if name not in voices:
        raise VoiceError(f"no voice {name!r}; expected one of {', '.join(voices)}")
    return voices[name]


async def speak_whole(voice: Voice, text: str) -> bytes:
    """All of the sound at once, for short texts and tests."""
    async with contextlib.aclosing(voice.speak(text)) as pieces:
        return b"".join([piece async for piece in pieces])

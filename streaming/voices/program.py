"""Voices that are programs: text goes in through one pipe, sound comes out of another."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import shutil
import struct
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from engine.audio import SOURCE_RATES_HZ
from streaming.errors import VoiceBrokenError, VoiceError, VoiceFormatError, VoiceStalledError
from streaming.voices.voice import SampleCutter

CHUNK_BYTES = 4_096  # 93 ms at 22.05 kHz
START_TIMEOUT_S = 30.0  # Piper loads its model first
STALL_S = 20.0
WAV_HEADER_BYTES = 44
ESPEAK_LANGUAGES = (*("en-us", "en-gb", "de", "es", "fr-fr", "it", "pt-br", "nl", "pl", "ru", "tr", "hi", "cmn", "sv"),)


@dataclass(frozen=True)
class EspeakVoice:
    """One language of eSpeak NG, run as a child process: it is under the GPL, so only pipes join it to us."""

    language: str
    sample_rate_hz: int = 22_050  # what every eSpeak NG voice without MBROLA makes; checked against its header

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice."""
        pieces = speak_program(
            espeak_command(self.language), self.language, text, self.sample_rate_hz, WAV_HEADER_BYTES
        )
        async with contextlib.aclosing(pieces):
            async for pcm in pieces:
                yield pcm


@dataclass(frozen=True)
class PiperVoice:
    """One model of Piper, whose program is under the GPL as well: a child process for each text."""

    model: Path
    sample_rate_hz: int

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice. Piper speaks line by line, and ends with its input."""
        command = [*piper_command(), "--model", str(self.model), "--output_raw"]
        line = " ".join(text.split()) + "\n"
        async with contextlib.aclosing(speak_program(command, self.model.stem, line, self.sample_rate_hz, 0)) as pieces:
            async for pcm in pieces:
                yield pcm


def espeak_command(language: str) -> list[str]:
    """The command line that reads text and writes WAV: the program where it is installed, else the wheel's library."""
    program = shutil.which("espeak-ng")
    if program:
        return [program, "--stdout", "--stdin", "-v", language]
    if importlib.util.find_spec("espeakng_loader"):
        return [sys.executable, "-m", "streaming.voices.espeak_child", language]
    raise VoiceError(
        "no eSpeak NG found; run `pip install espeakng-loader`, or install your system's espeak-ng package"
    )


def piper_command() -> list[str]:
    """The `piper` program on PATH, else the package's; VoiceError where there is neither."""
    program = shutil.which("piper")
    if program:
        return [program]
    if importlib.util.find_spec("piper"):
        return [sys.executable, "-m", "piper"]
    raise VoiceError("no Piper found; run `pip install piper-tts`, or put the `piper` program on PATH")


def open_piper(model: Path) -> PiperVoice:
    """The voice of a Piper model, whose settings stand beside it; VoiceError says what is missing."""
    piper_command()
    settings = model.with_name(f"{model.name}.json")
    for path in (model, settings):
        if not path.is_file():
            raise VoiceError(f"{path}: no such file; a Piper voice is two files, NAME.onnx and NAME.onnx.json")
    try:
        rate_hz = json.loads(settings.read_bytes())["audio"]["sample_rate"]
    except (ValueError, KeyError, TypeError) as error:
        raise VoiceError(f"{settings}: no settings of a Piper voice ({error!r}); download it again") from error
    if rate_hz not in SOURCE_RATES_HZ:
        raise VoiceError(f"{settings}: speaks at {rate_hz!r:.40} Hz, expected one of {SOURCE_RATES_HZ}; take another")
    return PiperVoice(model, rate_hz)


async def speak_program(
    command: list[str], name: str, text: str, sample_rate_hz: int, header_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Run a program that reads `text` and writes s16le mono, after a WAV header where `header_bytes` is not 0. It is
    killed when the generator is left."""
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
        if header_bytes:
            await _check_header(child, name, header_bytes, sample_rate_hz)
        cutter = SampleCutter(name, text, sample_rate_hz)
        while True:
            try:
                async with asyncio.timeout(STALL_S if cutter.seconds else START_TIMEOUT_S):
                    piece = await child.stdout.read(CHUNK_BYTES)
            except TimeoutError:
                raise VoiceStalledError(f"voice {name!r} made no sound for {STALL_S:.0f} s; try it again") from None
            if not piece:
                break
            if pcm := cutter.push(piece):
                yield pcm
        if code := await child.wait():
            said = (await child.stderr.read(500)).decode("utf-8", "replace").strip() or "without a word"
            raise VoiceBrokenError(
                f"voice {name!r} stopped with exit code {code} ({said}); what it had said is spoken, "
                "send the rest again or try another voice"
            )
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()


async def _check_header(child: asyncio.subprocess.Process, name: str, header_bytes: int, sample_rate_hz: int) -> None:
    assert child.stdout and child.stderr
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            header = await child.stdout.readexactly(header_bytes)
    except (asyncio.IncompleteReadError, TimeoutError):
        at_end = child.stdout.at_eof()
        said = (await child.stderr.read(500)).decode("utf-8", "replace").strip() if at_end else "no answer"
        raise VoiceError(f"voice {name!r} made no sound ({said}); try another voice") from None
    (found_hz,) = struct.unpack_from("<I", header, 24)
    if not header.startswith(b"RIFF") or found_hz != sample_rate_hz:
        raise VoiceFormatError(
            f"voice {name!r} speaks at {found_hz} Hz, expected {sample_rate_hz} Hz; try another voice"
        )

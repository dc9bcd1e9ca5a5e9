"""Programs that speak, eSpeak NG and Piper: text goes in through one pipe, sound comes out of another."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator

from streaming.errors import VoiceBrokenError, VoiceError, VoiceFormatError, VoiceStalledError
from streaming.voices.voice import SampleCutter

CHUNK_BYTES = 4_096  # 93 ms at 22.05 kHz
START_TIMEOUT_S = 30.0  # Piper loads its model first
STALL_S = 20.0


async def speak_program(
    command: list[str], name: str, text: str, sample_rate_hz: int, header_bytes: int
) -> AsyncGenerator[bytes, None]:
    """The sound of a program that reads `text` and writes s16le mono, after a WAV header of `header_bytes` if any.

    `name` is the voice's in error messages. Leaving the generator kills the program. Raises VoiceError and subclasses.
    """
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
            reason = (await child.stderr.read(500)).decode("utf-8", "replace").strip() or "without a reason"
            raise VoiceBrokenError(
                f"voice {name!r} stopped with exit code {code} ({reason}); the sound made so far is spoken, "
                "send the rest of the text again or try another voice"
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
        ended = child.stdout.at_eof()
        reason = (await child.stderr.read(500)).decode("utf-8", "replace").strip() if ended else "no answer"
        raise VoiceError(f"voice {name!r} made no sound ({reason}); try another voice") from None
    (rate_hz,) = struct.unpack_from("<I", header, 24)
    if not header.startswith(b"RIFF") or rate_hz != sample_rate_hz:
        raise VoiceFormatError(
            f"voice {name!r} speaks at {rate_hz} Hz, expected {sample_rate_hz} Hz; try another voice"
        )

"""Kokoro voices: natural, local, about real time on two cores. One child process serves all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from streaming.errors import VoiceBrokenError, VoiceError, VoiceStalledError
from streaming.voices.kokoro_child import FAILED, READY, SOUND, RecordReader
from streaming.voices.sentences import sentences
from streaming.voices.voice import SampleCutter

SAMPLE_RATE_HZ = 24_000
START_TIMEOUT_S = 180.0  # 90 to 330 MB from a cold disk, libraries that compile, and a busy machine
STALL_S = 60.0  # one sentence on a busy core
PIECE_BYTES = 1 << 14
# The first letter of a Kokoro voice is its language.
LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "j": "ja", "p": "pt-br"}


class KokoroProcess:
    """The child process. It speaks one text at a time; others wait."""

    def __init__(self, requests: asyncio.StreamWriter, records: RecordReader, names: list[str]):
        self.names = names
        self._requests, self._records = requests, records
        self._turn = asyncio.Lock()
        self._unread = False  # the records of an abandoned text are not all read

    async def speak(self, text: str, voice: str) -> AsyncGenerator[bytes, None]:
        """The sound of one sentence, s16le in pieces."""
        async with self._turn:
            while self._unread:
                kind, _ = await _next_record(self._records, STALL_S)
                self._unread = kind == SOUND
            request = {"text": text, "voice": voice, "lang": LANGUAGES.get(voice[:1], "en-us")}
            try:
                self._requests.write(json.dumps(request).encode() + b"\n")
                await self._requests.drain()
            except ConnectionError as error:
                raise VoiceBrokenError(f"Kokoro's process has ended ({error}); restart the server") from error
            self._unread = True
            while self._unread:
                kind, data = await _next_record(self._records, STALL_S)
                self._unread = kind == SOUND
                if kind == FAILED:
                    raise VoiceError(f"Kokoro cannot say this ({data.decode()}); try another text or voice")
                for start in range(0, len(data), PIECE_BYTES):
                    yield data[start : start + PIECE_BYTES]


async def _next_record(records: RecordReader, timeout_s: float) -> tuple[bytes, bytes]:
    try:
        async with asyncio.timeout(timeout_s):
            return await records.read()
    except TimeoutError:
        raise VoiceStalledError(f"Kokoro gave no answer for {timeout_s:g} s; the machine is too busy for it") from None
    except asyncio.IncompleteReadError:
        raise VoiceBrokenError("Kokoro's process has ended; restart the server, and see its output above") from None


@contextlib.asynccontextmanager
async def open_kokoro(model: Path, voices: Path) -> AsyncIterator[KokoroProcess]:
    """The process with the model loaded, for the time of the block. VoiceError names what is missing."""
    for path in (model, voices):
        if not path.is_file():
            raise VoiceError(f"{path}: no such file; Kokoro needs kokoro-v1.0.onnx and its file of voices")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streaming.voices.kokoro_child", str(model), str(voices)),
        stdin=pipe,
        stdout=pipe,
    )
    assert child.stdin and child.stdout
    records = RecordReader(child.stdout)
    try:
        kind, data = await _next_record(records, START_TIMEOUT_S)
        if kind != READY:
            raise VoiceError(
                f"Kokoro does not start ({data.decode()}); run `pip install personastream[kokoro]` and check both files"
            )
        yield KokoroProcess(child.stdin, records, json.loads(data))
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()


@dataclass(frozen=True)
class KokoroVoice:
    """One of Kokoro's voices."""

    process: KokoroProcess
    name: str
    sample_rate_hz: int = SAMPLE_RATE_HZ

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice."""
        for sentence in sentences(text):
            cutter = SampleCutter(self.name, sentence, self.sample_rate_hz)
            async with contextlib.aclosing(self.process.speak(sentence, self.name)) as pieces:
                async for piece in pieces:
                    yield cutter.push(piece)

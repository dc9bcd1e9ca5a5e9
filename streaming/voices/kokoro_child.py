"""The child process that speaks with Kokoro and keeps its model loaded.

    python -m streaming.voices.kokoro_child MODEL VOICES

kokoro-onnx uses phoneme libraries under the GPL and computes whole sentences at once, so it runs outside the server's
process. It reads requests, one JSON object {"text", "voice", "lang"} a line, and answers each with
records: a kind (one byte), a length (uint32, little endian) and that many bytes. The server's side is `kokoro`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import struct
import sys
from typing import Any, BinaryIO

READY = b"R"  # once: the names of the voices, as JSON
SOUND = b"S"  # s16le mono at 24 kHz
DONE = b"D"
FAILED = b"F"  # why, as text
RECORD = struct.Struct("<cI")
NICENESS = 5  # frames are due every 40 ms, the next sentence can wait


def write_record(out: BinaryIO, kind: bytes, data: bytes = b"") -> None:
    out.write(RECORD.pack(kind, len(data)) + data)
    out.flush()


class RecordReader:
    """Reads the records in `stream`. A read that is cancelled loses nothing."""

    def __init__(self, stream: asyncio.StreamReader):
        self._stream = stream
        self._head: tuple[bytes, int] | None = None  # kind and length of a record whose bytes are not read

    async def read(self) -> tuple[bytes, bytes]:
        """The kind and the bytes of the next record. IncompleteReadError where the stream ends."""
        if self._head is None:
            self._head = RECORD.unpack(await self._stream.readexactly(RECORD.size))
        kind, size = self._head
        data = await self._stream.readexactly(size)
        self._head = None
        return kind, data


async def speak(kokoro: Any, out: BinaryIO, text: str, voice: str, lang: str) -> None:
    """One text: its sound as records, then DONE."""
    import numpy as np

    async for samples, _ in kokoro.create_stream(text, voice=voice, lang=lang):
        write_record(out, SOUND, np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes())
    write_record(out, DONE)


def main(model: str, voices: str) -> int:
    """Serve requests until the input ends; returns the exit code."""
    out = sys.stdout.buffer
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        kokoro = importlib.import_module("kokoro_onnx").Kokoro(model, voices)
        names = list(kokoro.get_voices())
        kokoro.create("Ready.", voice=names[0])  # its first text takes seconds more: libraries load and compile
    except Exception as error:  # whatever the library and its runtime raise: the parent reports it
        write_record(out, FAILED, f"{type(error).__name__}: {error}".encode())
        return 1
    write_record(out, READY, json.dumps(names).encode())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            asyncio.run(speak(kokoro, out, request["text"], request["voice"], request["lang"]))
        except Exception as error:
            write_record(out, FAILED, f"{type(error).__name__}: {error}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

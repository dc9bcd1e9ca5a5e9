"""What a voice is, how one is found by its name, and how text is cut for those that speak a sentence at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from streaming.errors import VoiceError, VoiceFormatError

SENTENCE_END = re.compile(r"""(?<=[.!?…])\s+|(?<=[.!?…]["'”’)\]])\s+|(?<=[。！？])\s*|\n+""")
CLAUSE_END = re.compile(r"(?<=[,;:–—])\s+|(?<=[、，；：])")
MIN_CHARS = 12  # shorter than any sentence worth a request of its own, longer than "Dr." or "e.g."
FIRST_CHARS = 80  # a first sentence beyond this is cut at a clause, so that sound comes early
MIN_LIMIT_S = 20.0
SECONDS_A_CHAR = 1.0  # four times slower than the slowest speech


class Voice(Protocol):
    """Speaks text as s16le mono at its own sample rate, in pieces as they are made.

    `speak` raises VoiceError or one of its subclasses, also after sound has come. Leaving the generator before its end
    (`aclose`) ends the work, here and at a remote service.
    """

    @property
    def sample_rate_hz(self) -> int: ...

    def speak(self, text: str) -> AsyncGenerator[bytes, None]: ...


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; a long first one as its clauses."""
    pieces = _joined(SENTENCE_END.split(text))
    if pieces and len(pieces[0]) > FIRST_CHARS:
        pieces[:1] = _joined(CLAUSE_END.split(pieces[0]))
    return pieces


def _joined(pieces: list[str]) -> list[str]:
    """The pieces without blanks; one too short to stand alone begins the next, the last ends its predecessor."""
    found: list[str] = []
    for piece in filter(None, (piece.strip() for piece in pieces)):
        if found and len(found[-1]) < MIN_CHARS:
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    if len(found) > 1 and len(found[-1]) < MIN_CHARS:
        found[-2:] = [f"{found[-2]} {found[-1]}"]
    return found


class SampleCutter:
    """Bytes in pieces of any length to whole s16le samples, and no more of them than `text` can be."""

    def __init__(self, name: str, text: str, sample_rate_hz: int):
        self._name = name
        self._limit_s = max(MIN_LIMIT_S, len(text) * SECONDS_A_CHAR)
        self._rate_hz = sample_rate_hz
        self._odd = b""
        self._samples = 0

    @property
    def seconds(self) -> float:
        """How much sound has come."""
        return self._samples / self._rate_hz

    def push(self, data: bytes) -> bytes:
        """Continue; the whole samples. VoiceFormatError for a flood."""
        data = self._odd + data
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        self._samples += whole // 2
        if self.seconds > self._limit_s:
            raise VoiceFormatError(
                f"voice {self._name!r} sent {self.seconds:.0f} s of sound for a text that takes {self._limit_s:.0f} s "
                "at the most; check that it sends s16le at the rate that it was configured with"
            )
        return data[:whole]


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

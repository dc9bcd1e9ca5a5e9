"""The interface of a voice, the choice of one by name, and the check of its sound."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from streaming.errors import VoiceError, VoiceFormatError

MIN_LIMIT_S = 20.0
SECONDS_A_CHAR = 1.0  # four times slower than the slowest speech


class Voice(Protocol):
    """Speaks text as s16le mono at its own sample rate, in pieces as they are made.

    `speak` raises VoiceError or one of its subclasses, also after the first piece. Leaving the generator before its end
    (`aclose`) ends the work, here and at a remote service.
    """

    @property
    def sample_rate_hz(self) -> int: ...

    def speak(self, text: str) -> AsyncGenerator[bytes, None]: ...


class SampleCutter:
    """Cuts bytes in pieces of any length into whole s16le samples, limited to the duration that `text` can take."""

    def __init__(self, name: str, text: str, sample_rate_hz: int):
        self._name = name
        self._limit_s = max(MIN_LIMIT_S, len(text) * SECONDS_A_CHAR)
        self._rate_hz = sample_rate_hz
        self._odd = b""
        self._samples = 0

    @property
    def seconds(self) -> float:
        """The duration of the sound so far."""
        return self._samples / self._rate_hz

    def push(self, data: bytes) -> bytes:
        """The whole samples up to the end of `data`. VoiceFormatError beyond the limit."""
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
    """The voice of that name, or the first one where `name` is None; VoiceError lists the names."""
    if not voices:
        raise VoiceError("this server has no voice; send sound instead (speech.start)")
    if name is None:
        return next(iter(voices.values()))
    if name not in voices:
        raise VoiceError(f"no voice {name!r}; expected one of {', '.join(voices)}")
    return voices[name]

"""Sound: PCM and float samples, and streams of samples resampled."""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from pathlib import Path

import numpy as np

from engine.errors import SpeechFormatError
from engine.media import FPS, SAMPLE_RATE_HZ
from engine.sound_file import SoundFile

SPEECH_RATE_HZ = 16_000  # of the networks' input
SOURCE_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SPEECH_SAMPLES_PER_FRAME = SPEECH_RATE_HZ // FPS
ZERO_CROSSINGS = 48  # of the sinc on each side: flat up to 0.9 of the lower rate's Nyquist frequency
STOPBAND_DB = 80.0
BLOCK_SAMPLES = 1_024  # output computed at once, so that its input stays in the cache


@lru_cache
def _polyphase(up: int, down: int) -> tuple[np.ndarray, int]:
    """Kaiser-windowed sinc for `up` / `down`: taps [up, n] float32, oldest sample first, and its half length at the
    least common multiple of both rates."""
    widest = max(up, down)
    half = ZERO_CROSSINGS * widest
    transition = (STOPBAND_DB - 8) / (2.285 * 2 * math.pi * 2 * ZERO_CROSSINGS)  # Kaiser; cycles a sample, lower rate
    at = np.arange(-half, half + 1) / widest
    cutoff = 1 - transition
    kernel = np.sinc(at * cutoff) * np.kaiser(2 * half + 1, 0.1102 * (STOPBAND_DB - 8.7)) * cutoff * up / widest
    count = -(-len(kernel) // up)
    taps = np.pad(kernel, (0, count * up - len(kernel))).reshape(count, up).T[:, ::-1]
    taps = taps / taps.sum(1, keepdims=True)  # silence stays silence, a constant stays that constant
    return np.ascontiguousarray(taps, np.float32), half


class PcmResampler:
    """Resamples one utterance as a stream; the output does not depend on how the input is cut.

    Raises SpeechFormatError for a rate that is not in SOURCE_RATES_HZ.

    Every output sample is a dot product centred on its time. Its value cannot depend on the sender's packets, and the
    delay is 48 samples of the lower rate (2 ms at 24 kHz, 3 ms at 16 kHz, 6 ms at 8 kHz). The measured delay of a
    library's FFT filter was 37 ms at 24 kHz and 175 ms at 8 kHz.
    """

    def __init__(self, source_hz: int, target_hz: int):
        if source_hz not in SOURCE_RATES_HZ:
            raise SpeechFormatError(
                f"sample rate {source_hz} Hz; expected one of {', '.join(str(rate) for rate in SOURCE_RATES_HZ)}"
            )
        common = math.gcd(source_hz, target_hz)
        self._up, self._down = target_hz // common, source_hz // common
        self._taps, self._half = _polyphase(self._up, self._down)
        self._first = -self._taps.shape[1]  # index of the oldest source sample that is kept; silence before the start
        self._kept = np.zeros(-self._first, np.float32)
        self._made = 0

    @property
    def delay_samples(self) -> int:
        """Source samples that must follow a sample before its output is final."""
        return -(-self._half // self._up)

    def ready(self, count: int, *, last: bool = False) -> int:
        """The number of samples that `push` would return for `count` more."""
        if self._up == self._down:
            return count
        received = self._first + len(self._kept) + count
        behind = 0 if last else self._half
        return max(0, -(-(received * self._up - behind) // self._down) - self._made)

    def push(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Continue with float32 [N]; returns the output samples that are final, with `last` all of them."""
        if self._up == self._down:
            return samples
        ready = self._made + self.ready(len(samples), last=last)
        tail = np.zeros(self._taps.shape[1] if last else 0, np.float32)
        self._kept = np.concatenate([self._kept, samples, tail])
        parts = [self._make(n, min(n + BLOCK_SAMPLES, ready)) for n in range(self._made, ready, BLOCK_SAMPLES)]
        self._made = ready
        drop = (ready * self._down + self._half) // self._up + 1 - self._taps.shape[1] - self._first
        self._first, self._kept = self._first + drop, self._kept[drop:]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _make(self, start: int, stop: int) -> np.ndarray:
        """Output samples start <= k < stop."""
        newest, phase = np.divmod(np.arange(start, stop) * self._down + self._half, self._up)
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, self._taps.shape[1])
        oldest = newest + 1 - self._taps.shape[1] - self._first
        output: np.ndarray = np.einsum("kt,kt->k", windows[oldest], self._taps[phase])
        return output


class SampleQueue:
    """Float32 samples in order: pieces are appended at the end, any number of samples is taken from the front."""

    def __init__(self) -> None:
        self._pieces: deque[np.ndarray] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, samples: np.ndarray) -> None:
        if len(samples):
            self._pieces.append(samples)
            self._count += len(samples)

    def take(self, count: int | None = None) -> np.ndarray:
        """The first `count` samples, or all of them; at least `count` must be queued."""
        missing = self._count if count is None else count
        self._count -= missing
        parts = [np.zeros(0, np.float32)]
        while missing:
            piece = self._pieces.popleft()
            if len(piece) > missing:
                self._pieces.appendleft(piece[missing:])
                piece = piece[:missing]
            parts.append(piece)
            missing -= len(piece)
        return np.concatenate(parts)


def pcm_to_float(pcm: bytes, channels: int) -> np.ndarray:
    """Interleaved s16le bytes to mono float32 [N] in [-1, 1]."""
    if channels not in (1, 2) or len(pcm) % (2 * channels):
        raise SpeechFormatError(
            f"{len(pcm)} bytes of {channels}-channel sound; expected whole s16le samples of 1 or 2 channels"
        )
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return samples if channels == 1 else samples.reshape(-1, 2).mean(axis=1)


def float_to_pcm(samples: np.ndarray) -> np.ndarray:
    """Float32 [N] in [-1, 1] to int16 [N], clipped."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def speech_samples(speech: str | Path | np.ndarray) -> np.ndarray:
    """A sound file, or mono samples [N] at 48 kHz, int16 or float32 in [-1, 1], as int16 [N] at 48 kHz.

    Raises SpeechFormatError."""
    if not isinstance(speech, np.ndarray):
        return read_speech(Path(speech))
    if speech.ndim != 1 or speech.dtype not in (np.int16, np.float32):
        raise SpeechFormatError(
            f"samples {speech.dtype} {list(speech.shape)}; expected mono int16 or float32 [N] at 48 kHz: "
            "mix and convert them first"
        )
    return speech if speech.dtype == np.int16 else float_to_pcm(speech)


def read_speech(path: Path) -> np.ndarray:
    """Any sound file as mono int16 [N] at 48 kHz, 96 kB a second. Raises SpeechFormatError."""
    pcm = bytearray()  # grows in place: a list of pieces would be held twice when it is joined
    for block in SoundFile(path).blocks(SAMPLE_RATE_HZ):
        pcm += float_to_pcm(block).tobytes()
    return np.frombuffer(pcm, np.int16)

"""What flows through the engine: sound in chunks, frames with their sound, and integer media time.

Media time (`pts`) counts samples at 48 kHz; frame n starts at 1920 n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import soxr

from engine.errors import SpeechFormatError

FPS = 25
SAMPLE_RATE_HZ = 48_000
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS
SPEECH_RATE_HZ = 16_000
SPEECH_SAMPLES_PER_FRAME = SPEECH_RATE_HZ // FPS


def frame_pts(index: int) -> int:
    """The media time at which frame `index` starts."""
    return index * SAMPLES_PER_FRAME


@dataclass(frozen=True)
class MediaUnit:
    """One frame and the 40 ms of sound that belong to it: the only thing that a session emits.

    image: [H, W, 3] uint8 RGB.  samples: [1920] int16 mono, 48 kHz.
    """

    index: int
    image: np.ndarray
    samples: np.ndarray
    epoch: int
    speaking: bool  # the sound is speech of an utterance
    fresh: bool  # a new picture; False where a late one repeats its predecessor

    @property
    def pts(self) -> int:
        return frame_pts(self.index)


@dataclass(frozen=True)
class PlaybackStarted:
    """The first sample of an utterance was played at media time `pts`."""

    utterance: str
    pts: int


@dataclass(frozen=True)
class PlaybackFinished:
    """`position_samples` of the utterance were played, counted at its own sample rate."""

    utterance: str
    position_samples: int
    interrupted: bool


PlaybackEvent = PlaybackStarted | PlaybackFinished


class PcmResampler:
    """One utterance's PCM to another rate; the same samples come out however the input is cut.

    The input is fed to the filter in blocks of 10 ms (the next whole number of samples up to 40 ms) whatever
    arrives, so that its arithmetic never depends on the sender's packets.
    """

    def __init__(self, source_hz: int, target_hz: int):
        if source_hz % FPS or not 8_000 <= source_hz <= 48_000:
            raise SpeechFormatError(
                f"sample rate {source_hz} Hz; expected 8000, 11025, 16000, 22050, 24000, 32000, 44100 or 48000"
            )
        self._block = source_hz // math.gcd(source_hz, 100)
        self._stream = None if source_hz == target_hz else soxr.ResampleStream(source_hz, target_hz, 1, "float32")
        self._pending = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Continue with float32 [N]; returns what is ready at the target rate, all of it when `last`."""
        if self._stream is None:
            return samples
        data = np.concatenate([self._pending, samples])
        whole = len(data) // self._block * self._block
        out = [self._stream.resample_chunk(block) for block in data[:whole].reshape(-1, self._block)]
        self._pending = data[whole:]
        if last:
            out.append(self._stream.resample_chunk(self._pending, last=True))
        return np.concatenate(out) if out else np.zeros(0, np.float32)


def pcm_to_float(pcm: bytes, channels: int) -> np.ndarray:
    """Interleaved s16le bytes to mono float32 [N] in [-1, 1]."""
    if channels not in (1, 2) or len(pcm) % (2 * channels):
        raise SpeechFormatError(
            f"{len(pcm)} bytes of {channels}-channel sound; expected whole s16le samples of 1 or 2 channels"
        )
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return samples if channels == 1 else samples.reshape(-1, 2).mean(axis=1)


def float_to_pcm(samples: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1] to int16, clipped."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)

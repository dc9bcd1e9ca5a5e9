"""What flows through the engine: sound in chunks, frames with their sound, and integer media time.

Media time (`pts`) counts samples at 48 kHz; frame n starts at 1920 n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FPS = 25
SAMPLE_RATE_HZ = 48_000
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS


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

"""The unit that sessions emit, the playback events on it, and integer media time.

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
class PlaybackStarted:
    """The first sample of an utterance was played at media time `pts`."""

    utterance: str
    pts: int


@dataclass(frozen=True)
class PlaybackFinished:
    """The utterance ended after `position_samples` of it were played, counted at its sample rate."""

    utterance: str
    position_samples: int
    interrupted: bool


PlaybackEvent = PlaybackStarted | PlaybackFinished


@dataclass(frozen=True)
class MediaUnit:
    """One frame, its 40 ms of sound and the events that happen in it: the only output of a session.

    image: [H, W, 3] uint8 RGB.  samples: [1920] int16 mono, 48 kHz.
    """

    index: int
    image: np.ndarray
    samples: np.ndarray
    epoch: int
    speaking: bool  # the sound is speech of an utterance
    fresh: bool  # a new picture; False where a late one repeats its predecessor
    events: tuple[PlaybackEvent, ...] = ()  # in the order in which they happened

    @property
    def pts(self) -> int:
        return frame_pts(self.index)

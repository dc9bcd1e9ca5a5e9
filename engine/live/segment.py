"""A speech segment: consecutive frames of speech, from the first sound after silence until the mouth has closed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from engine.audio import SPEECH_RATE_HZ, SPEECH_SAMPLES_PER_FRAME, PcmResampler, SampleQueue
from engine.media import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, PlaybackEvent, PlaybackFinished, PlaybackStarted
from engine.models.geometry import GeometryState
from engine.models.speech import SpeechState


@dataclass(eq=False)
class Utterance:
    """Speech under one id: counts of its samples, and the sound at 48 kHz that is not yet in a segment."""

    name: str
    sample_rate_hz: int
    channels: int
    to_playback_rate: PcmResampler
    sound: SampleQueue = field(default_factory=SampleQueue)
    torn: bytes = b""  # the start of a sample whose rest has not come
    received_samples: int = 0
    played_samples: int = 0  # at 48 kHz
    started: bool = False
    ended: bool = False

    @property
    def position_samples(self) -> int:
        """The number of samples played, at the utterance's rate."""
        return min(self.received_samples, self.played_samples * self.sample_rate_hz // SAMPLE_RATE_HZ)

    def finished(self, *, interrupted: bool) -> PlaybackFinished:
        position = self.position_samples if interrupted else self.received_samples
        return PlaybackFinished(self.name, position, interrupted)


@dataclass
class _Piece:
    """`samples` at 48 kHz of a segment's sound that come from `utterance`; with `last` it ends there."""

    utterance: Utterance
    samples: int
    last: bool = False


@dataclass(eq=False)
class SpeechSegment:
    """Sound is taken from the front, frame by frame; `lips` holds the computed frames that were not yet emitted."""

    speech: SpeechState
    geometry: GeometryState
    step_frames: int
    lookahead_frames: int
    lips: dict[int, Tensor] = field(default_factory=dict)
    made: int = 0  # frames whose lips are known
    emitted: int = 0
    wanted: int | None = None  # output frame by which its first picture could be shown
    start: int | None = None  # output frame of the first frame, once anchored
    lead: int = 0  # with which it was anchored
    length: int | None = None  # frames in all, once closed
    painted: int | None = None  # the last output frame whose picture was begun
    step_begun: bool = False  # the lips of a step are being computed
    expressiveness: float = 1.0
    led_in: bool = True  # its first frames are blended from rest

    def __post_init__(self) -> None:
        self._sound = SampleQueue()
        self._pieces: deque[_Piece] = deque()
        # Resampled for the networks step by step: when an utterance ends, thirty seconds that waited behind it may
        # arrive at once, and resampling them at once would delay the frames of every session.
        self._to_speech_rate = PcmResampler(SAMPLE_RATE_HZ, SPEECH_RATE_HZ)
        self._to_resample = SampleQueue()  # at 48 kHz
        self._resampled = SampleQueue()  # at 16 kHz
        self._used_samples = 0  # at 16 kHz, by the steps so far

    @property
    def utterances(self) -> list[Utterance]:
        """The utterances that are not played to their end, in order."""
        return list(dict.fromkeys(piece.utterance for piece in self._pieces))

    @property
    def awaits_more(self) -> bool:
        """Whether its last utterance is still open."""
        return bool(self._pieces) and not self._pieces[-1].utterance.ended

    @property
    def buffered_samples(self) -> int:
        return len(self._sound)

    def append(self, utterance: Utterance, sound: np.ndarray, *, last: bool) -> None:
        """Continue with sound [n] at 48 kHz, n >= 1."""
        self._pieces.append(_Piece(utterance, len(sound), last))
        self._extend(sound)

    def end(self, utterance: Utterance) -> bool:
        """End `utterance` with the sound received so far; False if none of it is left to play."""
        for piece in reversed(self._pieces):
            if piece.utterance is utterance:
                piece.last = True
                return True
        return False

    def _extend(self, sound: np.ndarray) -> None:
        self._sound.append(sound)
        self._to_resample.append(sound)

    def close(self, release_frames: int) -> None:
        """End the speech: append silence until the mouth has closed, then the lookahead of the last step."""
        tail = -len(self._sound) % SAMPLES_PER_FRAME + release_frames * SAMPLES_PER_FRAME
        self._extend(np.zeros(tail, np.float32))
        self.length = self.emitted + len(self._sound) // SAMPLES_PER_FRAME
        spare = 2 * self.step_frames + self.lookahead_frames
        self._to_resample.append(np.zeros(spare * SAMPLES_PER_FRAME + self._to_speech_rate.delay_samples, np.float32))

    @property
    def step_ready(self) -> bool:
        """Whether the sound of the next step and its lookahead is complete and no step is being computed."""
        complete = self.length is not None and self.made >= self.length
        available = len(self._resampled) + self._to_speech_rate.ready(len(self._to_resample))
        return not self.step_begun and not complete and available >= self._needed

    @property
    def _needed(self) -> int:
        frames = self.made + self.step_frames + self.lookahead_frames
        return frames * SPEECH_SAMPLES_PER_FRAME - self._used_samples

    def begin_step(self) -> np.ndarray:
        """Begin a step: the pcm [n] float32 at 16 kHz that completes its window. `step_ready` must be true."""
        while len(self._resampled) < self._needed:
            sound = self._to_resample.take(min(SAMPLES_PER_FRAME, len(self._to_resample)))
            self._resampled.append(self._to_speech_rate.push(sound))
        pcm = self._resampled.take(self._needed)
        self._used_samples += len(pcm)
        self.step_begun = True
        return pcm

    def finish_step(self, speech: SpeechState, geometry: GeometryState, lips: Tensor) -> None:
        """Take the lips [step, V_low, 3] of the step that was begun. Lips of frames that went out are not kept."""
        self.speech, self.geometry, self.step_begun = speech, geometry, False
        self.lips.update((m, frame) for m, frame in enumerate(lips, self.made) if m >= self.emitted)
        self.made += len(lips)

    def take(self, pts: int) -> tuple[np.ndarray, bool, list[PlaybackEvent]]:
        """The sound of the next frame [1920], whether it is speech, and the playback events in it.

        A whole frame of sound must be buffered: a segment that runs out is closed first.
        """
        sound = self._sound.take(SAMPLES_PER_FRAME)
        self.lips.pop(self.emitted, None)
        self.emitted += 1
        events: list[PlaybackEvent] = []
        position, speaking = 0, False
        while self._pieces and position < SAMPLES_PER_FRAME:
            piece = self._pieces[0]
            taken = min(piece.samples, SAMPLES_PER_FRAME - position)
            if not piece.utterance.started:
                piece.utterance.started = True
                events.append(PlaybackStarted(piece.utterance.name, pts + position))
            speaking = True
            position += taken
            piece.samples -= taken
            piece.utterance.played_samples += taken
            if piece.samples:
                break
            self._pieces.popleft()
            if piece.last:
                events.append(piece.utterance.finished(interrupted=False))
        return sound, speaking, events

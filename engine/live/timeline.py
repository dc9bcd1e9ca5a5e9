"""Speech, lips and pictures of a session, frame by frame: its pure part, without a clock, thread or network.

Speech forms segments. A segment is anchored to an output frame once its first lips are known; until then, and between
segments, the avatar idles. A sender that falls behind is not a special case: silence closes the segment and the mouth,
and sound that arrives later begins a new segment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.audio import PcmResampler, float_to_pcm, pcm_to_float
from engine.avatar.loop import Loop
from engine.config import SINGLE, Level, SessionConfig
from engine.errors import CapacityError, ProtocolError, SpeechFormatError
from engine.live.job import Frame, Job, Lips, LipsJob, Outcome, PaintJob, Stage
from engine.live.quality import Pace
from engine.live.segment import SpeechSegment, Utterance
from engine.media import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, MediaUnit, PlaybackEvent, frame_pts

BEST = Pace("best")
SILENCE = np.zeros(SAMPLES_PER_FRAME, np.int16)
JITTER_FRAMES = 2  # how late a sender in real time may be before the mouth closes
IDLE_LEAD_FRAMES = 3  # idle pictures asked for ahead
MAX_UTTERANCES = 64  # begun and not played to their end
PIECES_A_SECOND = 2  # half a second of sound is resampled in a few milliseconds, well within a frame


@dataclass(frozen=True)
class _Choice:
    """The next job in `segment`: lips for frame `due`, or the pictures of `frames`, `due` first."""

    segment: SpeechSegment
    due: int
    level: Level | None = None  # of pictures
    frames: tuple[int, ...] = ()


class Timeline:
    """One session's speech, lips and pictures.

    rest: the quiet lips [V_low, 3].  new_segment: makes an empty segment.  first: [H, W, 3] uint8, shown until there is
    another picture.  idle: the idle picture [H, W, 3] uint8 of a base frame, None while it is not decoded.  lead, of
    methods: the frames between the arrival of speech and its first picture, for
    computing the lips and painting; 0 offline, where no time passes.

    The jobs of a session are run by `while (job := timeline.take(…)) is not None: timeline.finish(job, …)`.
    """

    def __init__(
        self,
        config: SessionConfig,
        loop: Loop,
        rest: Tensor,
        new_segment: Callable[[], SpeechSegment],
        first: np.ndarray,
        idle: Callable[[int], np.ndarray | None],
    ):
        self._config, self._loop, self._rest, self._new_segment = config, loop, rest, new_segment
        self._utterances: dict[str, Utterance] = {}  # open or waiting, in order of their start
        # Sound of cancelled utterances may still arrive. One cancel appends at most MAX_UTTERANCES, so that the others
        # never push out the first, which is being played.
        self._cancelled: deque[str] = deque(maxlen=4 * MAX_UTTERANCES)
        self._segments: deque[SpeechSegment] = deque()
        self._requested: dict[int, PaintJob] = {}  # by output frame
        self._pictures: dict[int, tuple[np.ndarray, Tensor | None]] = {}
        self._idle = idle
        self._image = first
        self._shown_lips: Tensor | None = None
        self._shown_frame = -1  # the frame that the shown picture was painted for
        self._events: list[PlaybackEvent] = []
        self.next_frame = 0
        self.phase = 0  # of the base loop at frame 0
        self.epoch = 0

    def start_utterance(self, name: str, sample_rate_hz: int, channels: int) -> None:
        """Raises ProtocolError for an id in use, SpeechFormatError for an unknown format, CapacityError."""
        unplayed = {u.name for u in self._unplayed}
        if name in unplayed:
            raise ProtocolError(f"utterance {name!r} is open or not yet played; give each utterance its own id")
        if len(unplayed) >= MAX_UTTERANCES:
            raise CapacityError(
                f"{len(unplayed)} utterances are open or not yet played, the limit is {MAX_UTTERANCES}; "
                f"begin {name!r} when one of them has finished"
            )
        if channels not in (1, 2):
            raise SpeechFormatError(f"utterance {name!r} has {channels} channels; expected 1 or 2: mix it down first")
        self._utterances[name] = Utterance(name, sample_rate_hz, channels, PcmResampler(sample_rate_hz, SAMPLE_RATE_HZ))

    @property
    def _unplayed(self) -> list[Utterance]:
        """The utterances that are not played to their end, in order."""
        spoken = [u for segment in self._segments for u in segment.utterances]
        return list(dict.fromkeys([*spoken, *self._utterances.values()]))

    def cut(self, name: str, pcm: bytes, limit_ms: int) -> list[bytes]:
        """`pcm` in pieces of at most half a second for `push_audio`; none for a cancelled utterance.

        Raises CapacityError where `limit_ms` wait behind an utterance that is still open: there is room only when that
        one ends, and its end may be the next message on the very connection that would wait here. Raises ProtocolError
        for an utterance that is not open. The last sample waits for its rest in the next piece if `pcm` tears it.
        """
        utterance = self._utterance(name)
        if utterance is None:
            return []
        first = next(iter(self._utterances))
        waiting = sum(len(u.sound) for u in self._utterances.values())
        if name != first and waiting * 1000 >= limit_ms * SAMPLE_RATE_HZ:
            raise CapacityError(
                f"{waiting / SAMPLE_RATE_HZ:.1f} s of speech wait behind utterance {first!r}, which is still open; "
                f"end {first!r}, then go on with {name!r}"
            )
        sample_bytes = 2 * utterance.channels
        pcm = utterance.torn + pcm
        whole = len(pcm) - len(pcm) % sample_bytes
        utterance.torn = pcm[whole:]
        size = utterance.sample_rate_hz // PIECES_A_SECOND * sample_bytes
        return [pcm[start : min(start + size, whole)] for start in range(0, whole, size)]

    def has_room(self, name: str, limit_ms: int) -> bool:
        """False while `limit_ms` wait to be played and `name` is the next utterance; always True for later ones."""
        if name != next(iter(self._utterances), name):
            return True
        return sum(segment.buffered_samples for segment in self._segments) * 1000 < limit_ms * SAMPLE_RATE_HZ

    def push_audio(self, name: str, pcm: bytes) -> None:
        """Continue an utterance with s16le; ignored if it was cancelled. Raises ProtocolError if it is not open."""
        utterance = self._utterance(name)
        if utterance is not None:
            samples = pcm_to_float(pcm, utterance.channels)
            utterance.received_samples += len(samples)
            utterance.sound.append(utterance.to_playback_rate.push(samples))
            self._feed()

    def end_utterance(self, name: str) -> None:
        """No more sound follows; ignored if it was cancelled. Raises ProtocolError if it is not open.

        Raises SpeechFormatError where the sound stopped inside a sample: the utterance has ended without that one.
        """
        utterance = self._utterance(name)
        if utterance is None:
            return
        utterance.sound.append(utterance.to_playback_rate.push(np.zeros(0, np.float32), last=True))
        utterance.ended = True
        self._feed()
        if utterance.torn:
            raise SpeechFormatError(
                f"utterance {name!r} ended with {len(utterance.torn)} bytes of a sample that has "
                f"{2 * utterance.channels}; they were dropped: send s16le sound in full"
            )

    def _utterance(self, name: str) -> Utterance | None:
        utterance = self._utterances.get(name)
        if utterance is None and name in self._cancelled:
            return None
        if utterance is None or utterance.ended:
            raise ProtocolError(f"utterance {name!r} is not open; send speech.start with this id first")
        return utterance

    def _feed(self) -> None:
        """Move sound into the open segment in the order of the utterances; each waits for the end of the one before."""
        for utterance in list(self._utterances.values()):
            if len(utterance.sound):
                self._open_segment().append(utterance, utterance.sound.take(), last=utterance.ended)
            elif utterance.ended and not any(segment.end(utterance) for segment in self._segments):
                self._events.append(utterance.finished(interrupted=False))
            if not utterance.ended:
                break
            del self._utterances[utterance.name]

    def _open_segment(self) -> SpeechSegment:
        if not self._segments or self._segments[-1].length is not None:
            self._segments.append(self._new_segment())
        return self._segments[-1]

    def cancel(self) -> None:
        """Barge-in: all speech ends with the frame last emitted, and the mouth closes from where it is."""
        self.epoch += 1
        for utterance in self._unplayed:
            self._events.append(utterance.finished(interrupted=True))
            self._cancelled.append(utterance.name)
        self._segments.clear()
        self._utterances.clear()
        self._requested.clear()
        self._pictures.clear()
        if self._shown_lips is not None:
            self._segments.append(self._closing(self._shown_lips))

    def _closing(self, lips: Tensor) -> SpeechSegment:
        """A silent segment whose frames all have `lips`, which are blended out to rest."""
        frames = self._config.crossfade_frames
        segment = self._new_segment()
        segment.close(frames)
        segment.lips = dict.fromkeys(range(frames), lips)
        segment.made, segment.start, segment.led_in = frames, self.next_frame, False
        return segment

    @property
    def buffered_ms(self) -> int:
        """Speech that was received and not yet played."""
        waiting = sum(len(u.sound) for u in self._utterances.values())
        return (waiting + sum(segment.buffered_samples for segment in self._segments)) * 1000 // SAMPLE_RATE_HZ

    @property
    def idle(self) -> bool:
        """Whether no speech is being played and none waits."""
        return not self._segments and not self._utterances

    @property
    def ready(self) -> bool:
        """Whether no work is being done that the next unit waits for where time does not matter: its picture, or lips,
        which may move the frames of a segment."""
        painting = self.next_frame in self._requested and self.next_frame not in self._pictures
        return not painting and not any(segment.step_begun for segment in self._segments)

    @property
    def idle_frames(self) -> list[tuple[int, int]]:
        """The next output frames that will show idle pictures, each with its base frame."""
        ahead = range(self.next_frame, self.next_frame + IDLE_LEAD_FRAMES)
        return [(n, self._base(n)) for n in ahead if self._segment_at(n) is None]

    def peek(self, first_paint: int, lead: int, pace: Pace = BEST) -> tuple[Stage, int] | None:
        """The stage of the job that `take` would return, and the output frame by which it is due; None without work."""
        choice = self._choose(first_paint, lead, pace)
        return None if choice is None else (choice.level or "lips", choice.due)

    def take(self, first_paint: int, lead: int, pace: Pace = BEST) -> Job | None:
        """Begin the most urgent job and return it; its outcome goes to `finish`. None without work.

        Frames before `first_paint` are due too soon to be painted: they are skipped where a later one can be painted.
        """
        choice = self._choose(first_paint, lead, pace)
        if choice is None:
            return None
        segment = choice.segment
        if choice.level is None:
            return LipsJob(segment, segment.begin_step(), choice.due)
        frames = tuple(Frame(self._base(n), self._blended(segment, n), n) for n in choice.frames)
        job = PaintJob(frames, choice.level)
        self._requested |= dict.fromkeys(choice.frames, job)
        segment.painted = choice.frames[-1]
        return job

    def finish(self, job: Job, outcome: Outcome, lead: int) -> None:
        """Take the outcome of a job, with the same `lead` as for the next one."""
        if isinstance(job, LipsJob):
            assert isinstance(outcome, Lips)
            self._finish_lips(job.segment, outcome, lead)
            return
        assert isinstance(job, PaintJob) and isinstance(outcome, list)
        for frame, picture in zip(job.frames, outcome, strict=True):
            if self._requested.get(frame.due) is job:  # else cancelled, or a later one is shown
                self._pictures[frame.due] = (picture, frame.lips)

    def _choose(self, first_paint: int, lead: int, pace: Pace) -> _Choice | None:
        for segment in self._segments:
            self._close_if_starved(segment, lead)
        lips, picture = self._next_lips(lead, first_paint), self._next_picture(first_paint, pace)
        return picture if lips is None or (picture is not None and picture.due < lips.due) else lips

    def _close_if_starved(self, segment: SpeechSegment, lead: int) -> None:
        """Close a segment that has no sound for another step, just in time to compute one more of silence."""
        if segment.length is not None or segment.step_ready or segment.step_begun:
            return
        if segment.start is None:
            starved = not segment.awaits_more
        else:  # a machine that has become slower since it was anchored must not cut the speech of a sender in time
            starved = segment.start + segment.made - self.next_frame <= min(lead, segment.lead)
        if starved:
            segment.close(self._config.release_frames)

    def _next_lips(self, lead: int, first_paint: int) -> _Choice | None:
        for segment in self._segments:
            if segment.step_ready and segment.made - segment.emitted < self._config.lead_frames:
                if segment.wanted is None:  # fixed once: with a moving deadline other sessions would go first forever
                    segment.wanted = self.next_frame + lead
                # So early that its pictures can be painted in time.
                due = (
                    segment.start + segment.made - (first_paint - self.next_frame)
                    if segment.start is not None
                    else segment.wanted
                )
                return _Choice(segment, due)
            if segment.start is None:  # the segments behind it are anchored behind its end
                break
        return None

    def _next_picture(self, first_paint: int, pace: Pace) -> _Choice | None:
        late: _Choice | None = None
        for n in range(self.next_frame, self.next_frame + self._config.lead_frames):
            if n in self._requested:
                late = None  # a later picture is there
                continue
            segment = self._segment_at(n)
            if segment is None:
                continue
            assert segment.start is not None
            if n - segment.start >= segment.made:
                break
            if segment.painted is not None and n < segment.painted + pace.stride:
                continue
            late = self._run(segment, n, pace)
            if n >= first_paint:
                return late
        return late  # a late picture is better than a frozen one

    def _run(self, segment: SpeechSegment, n: int, pace: Pace) -> _Choice:
        """The picture of frame n and, where the pace has runs, the next one, if its lips are known."""
        second = n + pace.stride
        known = self._segment_at(second) is segment and second - (segment.start or 0) < segment.made
        if pace.run_frames == 2 and known:
            return _Choice(segment, n, pace.level, (n, second))
        return _Choice(segment, n, SINGLE.get(pace.level, pace.level), (n,))

    def _base(self, n: int) -> int:
        return self._loop.frame_at(n + self.phase)

    def _segment_at(self, n: int) -> SpeechSegment | None:
        for segment in self._segments:
            if (
                segment.start is not None
                and segment.start <= n
                and (segment.length is None or n < segment.start + segment.length)
            ):
                return segment
        return None

    def _blended(self, segment: SpeechSegment, n: int) -> Tensor:
        """Lips [V_low, 3] of output frame n in a segment, led in from rest and out to it."""
        assert segment.start is not None
        m = n - segment.start
        share = min(1.0, (m + 1) / (self._config.attack_frames + 1)) if segment.led_in else 1.0
        if segment.length is not None:
            share = min(share, (segment.length - m) / (self._config.crossfade_frames + 1))
        return self._rest.lerp(segment.lips[m], share) if share < 1 else segment.lips[m]

    def _finish_lips(self, segment: SpeechSegment, outcome: Lips, lead: int) -> None:
        """The first lips of a segment anchor it: as early as possible if the sound of its next step is complete, else
        with a margin for a sender that is slightly late."""
        segment.finish_step(outcome.speech, outcome.geometry, outcome.lips)
        if segment.start is None and segment in self._segments:
            before = self._segments[self._segments.index(segment) - 1] if segment is not self._segments[0] else None
            free = 0 if before is None or before.start is None else before.start + (before.length or 0)
            margin = 0 if segment.step_ready or segment.length is not None else JITTER_FRAMES
            segment.start, segment.lead = max(self.next_frame + lead + margin, free), lead

    def emit(self) -> MediaUnit:
        """The next unit; where its picture is late, it repeats the last one."""
        n = self.next_frame
        segment = self._segment_at(n)
        samples, speaking = SILENCE, False
        if segment is not None:
            if segment.length is None and segment.buffered_samples < SAMPLES_PER_FRAME:
                segment.close(self._config.release_frames)
            sound, speaking, events = segment.take(frame_pts(n))
            self._events += events
            samples = float_to_pcm(sound)
            if segment.length is not None and segment.emitted >= segment.length:
                self._segments.remove(segment)
        fresh = self._show(n, silent=segment is None)
        unit = MediaUnit(n, self._image, samples, self.epoch, speaking, fresh, tuple(self._events))
        self._events.clear()
        self.next_frame = n + 1
        return unit

    def _show(self, n: int, *, silent: bool) -> bool:
        """Change to the latest picture for frame n or, late, for one before it; False if there is none."""
        pictures = {k: self._pictures.pop(k) for k in sorted(self._pictures) if k <= n}
        if silent and (image := self._idle(self._base(n))) is not None:
            pictures[n] = (image, None)
        if not pictures:
            return False
        self._shown_frame, (self._image, self._shown_lips) = pictures.popitem()
        # Late ones may still come.
        self._requested = {k: job for k, job in self._requested.items() if k > self._shown_frame}
        return True

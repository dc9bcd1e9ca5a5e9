"""One conversation: speech in, MediaUnits out at 25 a second from open to close, whether it speaks or idles."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from weakref import WeakValueDictionary

from engine.avatar.avatar import Avatar
from engine.config import SessionConfig
from engine.errors import DrainingError, SessionClosedError
from engine.live.client import SessionClient
from engine.live.frame_clock import FRAME_S, FrameClock
from engine.live.idle import IdlePictures
from engine.live.job import Job, Outcome
from engine.live.pipeline import AvatarPipeline, Work
from engine.live.quality import QualityController
from engine.live.scheduler import Scheduler
from engine.live.subscription import Subscriptions
from engine.media import FPS, MediaUnit
from engine.metrics import StageTimes
from engine.queues import MediaQueue

RESYNC_S = 1.0  # a machine that slept does not replay the frames that it missed
TALK_FRAMES = 10 * FPS  # a session counts as talking for so long after its opening and its last speech


@dataclass
class SessionCounters:
    """Counts of a session's units since its start."""

    units: int = 0
    speaking: int = 0
    fresh_speaking: int = 0  # new pictures while speaking
    late: int = 0  # units that went out more than half a frame after their time

    def __add__(self, other: SessionCounters) -> SessionCounters:
        return SessionCounters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Session:
    """Create it through `Engine.open_session`. Call every method on the event loop.

    Two latencies go into `latencies`: `first_frame`, from the first sound after silence to its first new picture going
    out with it, and `interrupt_tail`, from a barge-in to the first silent frame.
    """

    def __init__(
        self,
        name: str,
        pipeline: AvatarPipeline,
        scheduler: Scheduler[Work[Job], Outcome],
        config: SessionConfig,
        latencies: StageTimes | None = None,
        quality: QualityController | None = None,
        idle: IdlePictures | None = None,
    ):
        self.id = name
        self.avatar: Avatar = pipeline.avatar
        self.counters = SessionCounters()
        self._config, self._scheduler = config, scheduler
        self._idle = idle or IdlePictures(pipeline, scheduler)
        self._timeline = pipeline.new_timeline(config, self._idle.at)
        self._quality = quality or QualityController((pipeline.level,), lambda pace: 0.0)
        self._clock = FrameClock()
        self._closed = asyncio.Event()  # set when the session is to end
        self._ended = asyncio.Event()
        self._client = SessionClient(
            pipeline, self._timeline, self._clock, scheduler.costs, config.lead_frames, self._closed, self._quality
        )
        self._subscriptions = Subscriptions()
        self._room = asyncio.Condition()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by utterance
        self._draining = False
        self._spoke = 0  # the last frame with speech
        self._latencies = latencies or StageTimes()
        self._sound_came_s: float | None = None  # after silence, until its first picture goes out
        self._cancelled_s: float | None = None  # until the first silent frame

    @property
    def epoch(self) -> int:
        """The number of barge-ins so far."""
        return self._timeline.epoch

    def subscribe(self, capacity: int = 4, *, events_only: bool = False) -> MediaQueue[MediaUnit]:
        """A queue of all units from now on, or with `events_only` of those that carry events. It closes when the
        session has ended. Raises SessionClosedError.

        A slow reader loses the oldest units but no event: the next unit in the queue carries those of a dropped one.
        """
        self._need_open()
        return self._subscriptions.add(capacity, events_only=events_only)

    def unsubscribe(self, queue: MediaQueue[MediaUnit]) -> None:
        self._subscriptions.remove(queue)

    @property
    def viewer_backlog(self) -> int:
        """The number of units that wait in the queues of all subscribers."""
        return self._subscriptions.backlog

    def start_utterance(self, utterance: str, sample_rate_hz: int, channels: int) -> None:
        """Begin speech under a new id. Raises ProtocolError for an id in use, SpeechFormatError for an unknown rate or
        channel count, CapacityError, DrainingError, SessionClosedError."""
        self._need_open()
        if self._draining:
            raise DrainingError(f"session {self.id} finishes what was begun and then closes; open one elsewhere")
        self._timeline.start_utterance(utterance, sample_rate_hz, channels)

    async def push_audio(self, utterance: str, pcm: bytes) -> None:
        """Continue with s16le in pieces of any length; waits while `buffered_speech_ms` are buffered. Ignored after a
        barge-in.

        Raises CapacityError where as much already waits behind an utterance that is still open; ProtocolError,
        SessionClosedError.
        """
        self._need_open()
        epoch = self.epoch
        turn = self._turns.setdefault(utterance, asyncio.Lock())  # the waiting pushes keep it alive
        async with turn:
            self._need_open()
            if self.epoch != epoch:
                return
            for piece in self._timeline.cut(utterance, pcm, self._config.buffered_speech_ms):
                async with self._room:
                    await self._room.wait_for(lambda: self._may_go_on(utterance, epoch))
                self._need_open()
                if self.epoch != epoch:
                    return
                if self._timeline.buffered_ms == 0:
                    self._sound_came_s = self._clock.now_s
                self._timeline.push_audio(utterance, piece)
                self._scheduler.wake(self._client)
                await asyncio.sleep(0)  # resampling a long message at once would delay every session's frames

    def _may_go_on(self, utterance: str, epoch: int) -> bool:
        if self._closed.is_set() or self.epoch != epoch:
            return True
        return self._timeline.has_room(utterance, self._config.buffered_speech_ms)

    def end_utterance(self, utterance: str) -> None:
        """No more sound follows. Raises ProtocolError, SessionClosedError; SpeechFormatError where the sound stopped
        inside a sample, without which the utterance has ended."""
        self._need_open()
        try:
            self._timeline.end_utterance(utterance)
        finally:
            self._scheduler.wake(self._client)

    def cancel(self) -> None:
        """Barge-in: from the next frame on there is silence and the mouth closes."""
        if self._timeline.buffered_ms:
            self._cancelled_s = self._clock.now_s
        self._sound_came_s = None
        self._timeline.cancel()
        self._prepare()

    @property
    def buffered_ms(self) -> int:
        """Speech that was received and not yet played."""
        return self._timeline.buffered_ms

    @property
    def talks(self) -> bool:
        """Whether it speaks, is about to, or has just been opened, and so needs the device at every frame."""
        return self.speaks or self._timeline.next_frame - self._spoke < TALK_FRAMES

    @property
    def speaks(self) -> bool:
        """Whether speech is being played or waits."""
        return not self._timeline.idle

    async def drain(self) -> None:
        """Refuse new utterances, and wait until those that were begun are played to their end."""
        self._draining = True
        async with self._room:
            await self._room.wait_for(lambda: self._closed.is_set() or self._timeline.idle)

    async def close(self) -> None:
        """Make the session end; idempotent. `ended` waits until it has."""
        self._closed.set()

    async def ended(self) -> None:
        """Wait until the session has ended, by `close` or by a failure."""
        await self._ended.wait()

    def _need_open(self) -> None:
        if self._closed.is_set():
            raise SessionClosedError(f"session {self.id} is closed; open a new one")

    async def run(self) -> None:
        """Emit units until `close`. Raises the error of a session that failed."""
        self._clock.start()
        self._align()
        self._scheduler.add(self._client)
        self._idle.join()
        self._prepare()
        try:
            while not await self._closed_before(self._clock.due_s(self._timeline.next_frame)):
                late_s = self._clock.late_s(self._timeline.next_frame)
                self.counters.late += late_s > FRAME_S / 2
                if late_s > RESYNC_S:
                    self._clock.skip(late_s)
                    self._align()
                await self._emit()
        finally:
            self._scheduler.remove(self._client)
            self._idle.leave()
            self._closed.set()
            await self._subscriptions.close()
            async with self._room:
                self._room.notify_all()
            self._ended.set()
        if self._client.failure is not None:
            raise self._client.failure

    def _align(self) -> None:
        """All sessions of an avatar show the same base frame, so that it is decoded and cut once for all of them."""
        self._timeline.phase = round(self._clock.began_s * FPS)

    async def _closed_before(self, moment_s: float) -> bool:
        """Wait until that loop time or until the session is closed; returns whether it is closed."""
        try:
            async with asyncio.timeout_at(moment_s):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def _emit(self) -> None:
        unit = self._timeline.emit()
        self.counters.units += 1
        self.counters.speaking += unit.speaking
        self._spoke = unit.index if unit.speaking else self._spoke
        self.counters.fresh_speaking += unit.speaking and unit.fresh
        if unit.speaking:
            self._quality.observe(self._clock.now_s, unit.fresh)
        self._measure(unit)
        await self._subscriptions.put(unit)
        async with self._room:
            self._room.notify_all()
        self._prepare()

    def _prepare(self) -> None:
        """Have the next pictures made; frames that were to speak may now be silent."""
        for frame, base in self._timeline.idle_frames:
            self._idle.want(base, self._clock.due_s(frame))
        if not self._timeline.idle:
            self._scheduler.wake(self._client)

    def _measure(self, unit: MediaUnit) -> None:
        now_s = self._clock.now_s
        if self._sound_came_s is not None and unit.speaking and unit.fresh:
            self._latencies.observe("first_frame", now_s - self._sound_came_s)
            self._sound_came_s = None
        if self._cancelled_s is not None and not unit.speaking:
            self._latencies.observe("interrupt_tail", now_s - self._cancelled_s)
            self._cancelled_s = None

"""One conversation: speech in, MediaUnits out at 25 a second from open to close, whether it speaks or idles."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from weakref import WeakValueDictionary

from engine.avatar.avatar import Avatar
from engine.config import SessionConfig
from engine.errors import DrainingError, SessionClosedError
from engine.live.pipeline import AvatarPipeline, Outcome, Work, finish, stage
from engine.live.scheduler import Scheduler
from engine.live.subscription import Subscriptions
from engine.live.timeline import HearJob, Job, frames_late
from engine.media import FPS, MediaUnit
from engine.metrics import StageTimes
from engine.queues import MediaQueue

log = logging.getLogger(__name__)

FRAME_S = 1 / FPS
RESYNC_S = 1.0  # a machine that slept does not replay what it missed
COST_SMOOTHING = 0.2
COST_MARGIN = 1.2
TALK_FRAMES = 10 * FPS  # who spoke so recently, or came only then, will go on: its place on the device is kept


@dataclass
class SessionCounters:
    """What happened so far."""

    units: int = 0
    speaking: int = 0
    fresh_speaking: int = 0  # new pictures while speaking
    late: int = 0  # ticks that came more than half a frame after their time

    def __add__(self, other: SessionCounters) -> SessionCounters:
        return SessionCounters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Session:
    """Create through `Engine.open_session`. Every method is for the event loop.

    Two latencies go into `latencies`: `first_frame`, from the first sound after silence to its first new picture going
    out with it, and `interrupt_tail`, from a barge-in to the first silent frame.
    """

    def __init__(
        self,
        name: str,
        pipeline: AvatarPipeline,
        scheduler: Scheduler,
        config: SessionConfig,
        latencies: StageTimes | None = None,
    ):
        self.id = name
        self.avatar: Avatar = pipeline.avatar
        self.counters = SessionCounters()
        self._config, self._pipeline, self._scheduler = config, pipeline, scheduler
        self._timeline = pipeline.new_timeline(config)
        self._subscriptions = Subscriptions()
        self._room = asyncio.Condition()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of pushes to one utterance
        self._closed = asyncio.Event()
        self._ended = asyncio.Event()
        self._clock: Callable[[], float] = time.monotonic  # the loop's, once it runs
        self._began = 0.0
        self._hear_s = 0.02
        self._paint_s = 0.03
        self._latencies = latencies or StageTimes()
        self._heard_s: float | None = None  # when sound came after silence, until its first picture goes out
        self._cancelled_s: float | None = None
        self._draining = False
        self._job: Job | None = None
        self._spoke = 0  # the last frame with speech
        self._failure: Exception | None = None

    # ---- viewers

    @property
    def epoch(self) -> int:
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

    async def ended(self) -> None:
        """Wait until the session has ended, by `close` or by a failure."""
        await self._ended.wait()

    # ---- speech

    def start_utterance(self, utterance: str, sample_rate_hz: int, channels: int) -> None:
        """Raises ProtocolError (id in use), SpeechFormatError, CapacityError, DrainingError, SessionClosedError."""
        self._need_open()
        if self._draining:
            raise DrainingError(f"session {self.id} finishes what was begun and then closes; open one elsewhere")
        self._timeline.start_utterance(utterance, sample_rate_hz, channels)

    async def push_audio(self, utterance: str, pcm: bytes) -> None:
        """Continue with s16le; waits while `buffered_speech_ms` are buffered. Ignored after a barge-in.

        Raises CapacityError where as much already waits behind an utterance that is still open.
        """
        self._need_open()
        epoch = self.epoch
        turn = self._turns.setdefault(utterance, asyncio.Lock())  # kept by those that wait for it
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
                    self._heard_s = self._clock()
                self._timeline.push_audio(utterance, piece)
                self._scheduler.wake()
                await asyncio.sleep(0)  # resampling a long message at once would hold up every session's frames

    def _may_go_on(self, utterance: str, epoch: int) -> bool:
        if self._closed.is_set() or self.epoch != epoch:
            return True
        return self._timeline.has_room(utterance, self._config.buffered_speech_ms)

    def end_utterance(self, utterance: str) -> None:
        self._need_open()
        self._timeline.end_utterance(utterance)
        self._scheduler.wake()

    def cancel(self) -> None:
        """Barge-in: from the next frame on there is silence and the mouth closes."""
        if self._timeline.buffered_ms:
            self._cancelled_s = self._clock()
        self._heard_s = None
        self._timeline.cancel()
        self._scheduler.wake()

    @property
    def buffered_ms(self) -> int:
        """Speech that was received and not yet played."""
        return self._timeline.buffered_ms

    @property
    def talks(self) -> bool:
        """It speaks, is about to, or has just been opened: it needs the device at every frame."""
        return not self._timeline.idle or self._timeline.next_frame - self._spoke < TALK_FRAMES

    @property
    def viewer_backlog(self) -> int:
        """Units that wait in the queues of all subscribers."""
        return self._subscriptions.backlog

    async def drain(self) -> None:
        """Take no new utterance, and wait until those that were begun are played to their end."""
        self._draining = True
        async with self._room:
            await self._room.wait_for(lambda: self._closed.is_set() or self._timeline.idle)

    def _need_open(self) -> None:
        if self._closed.is_set():
            raise SessionClosedError(f"session {self.id} is closed; open a new one")

    # ---- the clock

    async def run(self) -> None:
        """Emit units until `close`. Raises what made the session fail."""
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._began = loop.time()
        # All sessions of an avatar move alike: the base frame that one decodes and cuts is what the others need too.
        self._timeline.phase = round(self._began * FPS)
        self._scheduler.add(self)
        try:
            while not await self._closed_before(self._due(self._timeline.next_frame)):
                late_s = loop.time() - self._due(self._timeline.next_frame)
                self.counters.late += late_s > FRAME_S / 2
                if late_s > RESYNC_S:
                    self._began += late_s
                await self._emit()
        finally:
            self._scheduler.remove(self)
            self._closed.set()
            await self._subscriptions.close()
            async with self._room:
                self._room.notify_all()
            self._ended.set()
        if self._failure is not None:
            raise self._failure

    def _due(self, frame: int) -> float:
        """Loop time at which a frame is emitted."""
        return self._began + (frame + 1) * FRAME_S

    async def _closed_before(self, moment: float) -> bool:
        """Wait for that loop time, or until the session is closed."""
        try:
            async with asyncio.timeout_at(moment):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def _emit(self) -> None:
        unit = self._timeline.emit()
        self.counters.units += 1
        self.counters.speaking += unit.speaking
        self._spoke = unit.index if unit.speaking else self._spoke
        self.counters.fresh_speaking += unit.speaking and unit.fresh
        self._measure(unit)
        await self._subscriptions.put(unit)
        async with self._room:
            self._room.notify_all()
        self._scheduler.wake()

    def _measure(self, unit: MediaUnit) -> None:
        now = self._clock()
        if self._heard_s is not None and unit.speaking and unit.fresh:
            self._latencies.observe("first_frame", now - self._heard_s)
            self._heard_s = None
        if self._cancelled_s is not None and not unit.speaking:
            self._latencies.observe("interrupt_tail", now - self._cancelled_s)
            self._cancelled_s = None

    async def close(self) -> None:
        """Stop; idempotent. Queues close when `run` has ended."""
        self._closed.set()

    # ---- the scheduler's client

    @property
    def _lead(self) -> int:
        """Frames from speech being there to its first picture being shown."""
        return 1 + min(self._config.lead_frames, math.ceil((self._hear_s + self._paint_s) * COST_MARGIN / FRAME_S))

    def due(self) -> tuple[str, float] | None:
        if self._closed.is_set():
            return None
        frame = self._timeline.next_frame
        slack = self._due(frame) - self._clock()
        first = frame + frames_late(self._paint_s * COST_MARGIN, slack, FRAME_S)
        self._job = self._timeline.next_job(first, self._lead)
        return None if self._job is None else (stage(self._job), self._due(self._job.due))

    def begin(self) -> Work[Job]:
        assert self._job is not None
        return Work(self._pipeline, self._timeline.take(self._job))

    def perform(self, batch: Sequence[Work[Job]]) -> list[tuple[Outcome, float]]:
        began = self._clock()
        outcomes = self._pipeline.perform_all(batch)
        seconds = self._clock() - began
        return [(outcome, seconds) for outcome in outcomes]

    def finish(self, work: Work[Job], outcome: tuple[Outcome, float]) -> None:
        result, seconds = outcome
        if isinstance(work.job, HearJob):
            self._hear_s += COST_SMOOTHING * (seconds - self._hear_s)
        elif work.job.lips is not None:
            self._paint_s += COST_SMOOTHING * (seconds - self._paint_s)
        finish(self._timeline, work.job, result, self._lead)

    def fail(self, error: Exception) -> None:
        self._failure = error
        self._closed.set()

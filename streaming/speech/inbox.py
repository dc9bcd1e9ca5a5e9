"""Inbox: the messages of one speech socket that have been read and that the session has not taken yet.

Reading never waits for the session: pings, barge-ins and the client's close come behind the speech. What may wait is
bounded instead. An utterance that no longer fits ends with the sound before; its rest is ignored, and the client is
told once how much was taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from engine.queues import MediaQueue, Policy
from streaming.errors import SpeechRefusedError
from streaming.server.live_session import LiveSession
from streaming.speech.protocol import SpeechAudio, SpeechEnd, SpeechStart, SpeechText

MAX_WAITING_BYTES = 32 << 20  # of all sockets of a session: eleven minutes of 24 kHz mono
MESSAGE_BYTES = 256  # of a message without its sound or text, in memory
REMEMBERED_UTTERANCES = 256
# What is refused is read at this rate: a client that sends without an end costs the other sessions little, and a ping
# behind the ten megabytes that the kernels of both sides buffer at the most is answered within seconds.
REFUSED_BYTES_A_SECOND = 4 << 20
REFUSED_BYTES_AT_ONCE = 128 << 10

Waiting = SpeechStart | SpeechAudio | SpeechEnd | SpeechText


class Inbox:
    """Iterate over it for (message, epoch of its arrival), in the order of `put`, until `close`."""

    def __init__(self, live_session: LiveSession):
        self._live_session = live_session
        # The limit of `put` is that of the session. Ends are always taken, so the queue's own is higher.
        self._queue: MediaQueue[tuple[Waiting, int]] = MediaQueue(
            2 * MAX_WAITING_BYTES, Policy.WAIT, lambda item: size_of(item[0])
        )
        self._sound: dict[str, tuple[int, int]] = {}  # by utterance: bytes of a sample of all channels, bytes taken
        self._refused: deque[str] = deque(maxlen=REMEMBERED_UTTERANCES)
        self._refused_bytes = 0  # since the last pause

    async def put(self, message: Waiting, epoch: int) -> None:
        """Take `message` at once. Raises SpeechRefusedError where it does not fit, QueueClosed."""
        if self._is_refused(message):
            await self._pause(message)
            return
        fits = self._live_session.waiting_bytes + size_of(message) <= MAX_WAITING_BYTES
        if fits or isinstance(message, SpeechEnd):
            self._count(message)
            await self._append(message, epoch)
            return
        self._refused.append(message.id)
        if isinstance(message, SpeechAudio):
            await self._append(SpeechEnd(message.id), epoch)
        sample_bytes, taken_bytes = self._sound.pop(message.id, (1, 0))
        taken = taken_bytes // sample_bytes
        raise SpeechRefusedError(
            f"{self._live_session.waiting_bytes >> 20} MiB of speech wait to be played, which is the most. "
            f"{taken} samples of utterance {message.id!r} were taken and will be played, its rest is refused; send "
            "that later, as another utterance",
            message.id,
            taken,
        )

    async def __aiter__(self) -> AsyncIterator[tuple[Waiting, int]]:
        async for message, epoch in self._queue:
            self._live_session.waiting_bytes -= size_of(message)
            yield message, epoch

    async def close(self) -> None:
        """Take no more; what waits is still iterated over. Idempotent."""
        await self._queue.close()

    async def discard(self) -> None:
        """Drop what waits, and close. Idempotent."""
        await self.close()
        async for _ in self:
            pass

    def _is_refused(self, message: Waiting) -> bool:
        """Whether it belongs to an utterance that was refused, and does not begin it anew."""
        if message.id in self._refused and isinstance(message, SpeechStart | SpeechText):
            self._refused.remove(message.id)
        return message.id in self._refused

    async def _pause(self, refused: Waiting) -> None:
        self._refused_bytes += size_of(refused)
        if self._refused_bytes >= REFUSED_BYTES_AT_ONCE:
            await asyncio.sleep(self._refused_bytes / REFUSED_BYTES_A_SECOND)
            self._refused_bytes = 0

    async def _append(self, message: Waiting, epoch: int) -> None:
        await self._queue.put((message, epoch))
        self._live_session.waiting_bytes += size_of(message)

    def _count(self, message: Waiting) -> None:
        match message:
            case SpeechStart(utterance, _, channels):
                self._sound[utterance] = (max(1, 2 * channels), 0)
                if len(self._sound) > REMEMBERED_UTTERANCES:
                    del self._sound[next(iter(self._sound))]
            case SpeechAudio(utterance, pcm) if utterance in self._sound:
                sample_bytes, taken_bytes = self._sound[utterance]
                self._sound[utterance] = (sample_bytes, taken_bytes + len(pcm))
            case SpeechEnd(utterance):
                self._sound.pop(utterance, None)


def size_of(message: Waiting) -> int:
    """The memory of a message while it waits."""
    match message:
        case SpeechAudio(_, pcm):
            return MESSAGE_BYTES + len(pcm)
        case SpeechText(_, text, _):
            return MESSAGE_BYTES + len(text)
    return MESSAGE_BYTES

"""Destination: one place that a session is published to. It reconnects by itself; its failures affect nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from engine.errors import SessionClosedError
from streaming.errors import PublishError
from streaming.publish.broadcast import Broadcast, EncodedStream
from streaming.publish.encoders import VideoCodec
from streaming.publish.sinks import Sink
from streaming.publish.status import State, Status, without_secrets

log = logging.getLogger(__name__)

QUEUE_UNITS = 50  # two seconds: a short stall of the network loses nothing
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
STEADY_S = 10.0  # after a connection that held for this long, the next delay is FIRST_DELAY_S again


class Destination:
    """Sends to a sink. After a failure it waits, twice as long each time, and connects again."""

    def __init__(self, url: str, sink: Sink, broadcast: Broadcast):
        self.id = secrets.token_urlsafe(9)
        self.status = Status(without_secrets(url))
        self._sink = sink
        self._broadcast = broadcast
        self._stream: EncodedStream | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Publish until `stop` or the end of the session."""
        attempt = 0
        try:
            while not self._stopped.is_set():
                connections, began_s = self.status.connections, asyncio.get_running_loop().time()
                try:
                    await self._send()
                    return
                except SessionClosedError:
                    return
                except PublishError as error:
                    self.status.failed(error)
                    log.warning("session %s: %s: %s", self._broadcast.session_id, self.status.url, error)
                connected = self.status.connections > connections
                steady = connected and asyncio.get_running_loop().time() - began_s >= STEADY_S
                attempt = 0 if steady else attempt + 1
                await self._wait_for_stop(retry_delay_s(attempt))
        finally:
            self.status.state = State.ENDED

    async def stop(self) -> None:
        """Ask `run` to end; the sink sends what is queued and closes the stream or file properly. Idempotent."""
        self._stopped.set()
        if self._stream is not None:
            await self._stream.units.close()

    async def _send(self) -> None:
        stream = self._broadcast.open(VideoCodec.H264, self._sink.sound, capacity=QUEUE_UNITS, steady=True)
        self._stream = stream
        try:
            await self._sink.send(stream, self.status)
        finally:
            self._broadcast.close(stream)
            self.status.dropped_units += stream.dropped
            self._stream = None

    async def _wait_for_stop(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._stopped.wait()
        except TimeoutError:
            pass


def retry_delay_s(attempt: int) -> float:
    """Seconds before the next connection: doubled each time, and random, so that many do not reconnect at once."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0)

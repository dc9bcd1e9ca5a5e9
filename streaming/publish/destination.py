"""Publication: one destination of a broadcast, kept alive; what happens to it touches nobody else."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol
from urllib.parse import urlsplit

from engine.errors import SessionClosedError
from streaming.errors import PublishError
from streaming.publish.broadcast import Broadcast, EncodedStream
from streaming.publish.encoders import SoundCodec, VideoCodec

log = logging.getLogger(__name__)

QUEUE_UNITS = 50  # two seconds: a short stall of the network loses nothing
FIRST_DELAY_S = 0.5
MOST_DELAY_S = 30.0
STEADY_S = 10.0  # a connection that held for so long was a good one: the next delay is the first again


class State(Enum):
    CONNECTING = "connecting"
    LIVE = "live"
    RETRYING = "retrying"
    ENDED = "ended"


@dataclass
class Status:
    """How a publication does right now. `url` is without its secrets; `place` is the file written to, if any."""

    url: str
    state: State = State.CONNECTING
    bytes: int = 0  # taken by the destination, over all connections
    connections: int = 0  # that were live
    failures: int = 0
    last_error: str | None = None
    place: str | None = None
    dropped_units: int = 0
    _before: int = field(default=0, repr=False)  # bytes of earlier connections

    def live(self, taken_bytes: int) -> None:
        """The destination has taken so many bytes of this connection."""
        self.connections += self.state is not State.LIVE
        self.state = State.LIVE
        self.bytes = self._before + taken_bytes

    def failed(self, error: Exception) -> None:
        self.state = State.RETRYING
        self.failures += 1
        self.last_error = str(error)
        self._before = self.bytes

    def to_json(self) -> dict[str, str | int | None]:
        names = ("url", "bytes", "connections", "failures", "last_error", "place", "dropped_units")
        return {"state": self.state.value} | {name: getattr(self, name) for name in names}


class Sink(Protocol):
    """One kind of destination."""

    sound: SoundCodec  # beside H.264

    async def send(self, outlet: EncodedStream, status: Status) -> None:
        """Send units until the outlet ends, and say on `status` what was taken; PublishError where that fails."""


class Publication:
    """Sends to a sink, again and again: after a failure it waits, twice as long each time, and connects anew."""

    def __init__(self, url: str, sink: Sink, broadcast: Broadcast):
        self.id = secrets.token_urlsafe(9)
        self.status = Status(hidden(url))
        self._sink = sink
        self._broadcast = broadcast
        self._outlet: EncodedStream | None = None
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
                held = self.status.connections > connections
                attempt = 0 if held and asyncio.get_running_loop().time() - began_s >= STEADY_S else attempt + 1
                await self._stopped_within(retry_delay_s(attempt))
        finally:
            self.status.state = State.ENDED

    async def stop(self) -> None:
        """Ask `run` to end: what was written is brought to a proper end. Idempotent."""
        self._stopped.set()
        if self._outlet is not None:
            await self._outlet.units.close()

    async def _send(self) -> None:
        outlet = self._broadcast.open(VideoCodec.H264, self._sink.sound, capacity=QUEUE_UNITS, steady=True)
        self._outlet = outlet
        try:
            await self._sink.send(outlet, self.status)
        finally:
            self._broadcast.close(outlet)
            self.status.dropped_units += outlet.dropped
            self._outlet = None

    async def _stopped_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass


def retry_delay_s(attempt: int) -> float:
    """How long to wait before the next connection: doubled each time, and random, so that many do not come at once."""
    return min(MOST_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def hidden(url: str) -> str:
    """The URL without user, password, query and the last part of an RTMP path, which is the stream's key."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path
    if parts.scheme.lower() in ("rtmp", "rtmps") and path.count("/") > 1:
        path = path.rpartition("/")[0] + "/…"
    return f"{parts.scheme}://{host}{path}"

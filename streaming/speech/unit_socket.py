"""Units for programs beside the server: one websocket with a session's frames, their sound and its playback events.

What a browser gets through WebRTC, without a codec: for agents that publish it themselves, and for anything that has
to know which sound belongs to which picture. 25 units a second; a slow reader loses the oldest, sound and picture
together.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from engine.media import FPS, MediaUnit, PlaybackEvent, PlaybackStarted
from engine.queues import MediaQueue, QueueClosed
from streaming.server.live_session import LiveSession
from streaming.speech.protocol import Encoding, Finished, ServerMessage, SessionReady, Started, Unit, encode

BACKLOG_UNITS = 10


class UnitSocket:
    """Sends; what the client sends is not read, only its leaving."""

    def __init__(self, socket: web.WebSocketResponse, live_session: LiveSession):
        self._socket = socket
        self._live_session = live_session
        self._session = live_session.session

    async def run(self, request: web.Request) -> None:
        """Serve until the client or the session leaves. SessionClosedError if the session has ended before."""
        units, events = self._session.subscribe(BACKLOG_UNITS), self._session.subscribe_events()
        avatar = self._session.avatar
        try:
            await self._socket.prepare(request)
            await self._send(
                SessionReady(self._session.id, self._live_session.avatar, avatar.width, avatar.height, FPS, ())
            )
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._forward(units, events))
                async for _ in self._socket:
                    pass
                sending.cancel()
        finally:
            self._session.unsubscribe(units)
            self._session.unsubscribe_events(events)

    async def _forward(self, units: MediaQueue[MediaUnit], events: MediaQueue[PlaybackEvent]) -> None:
        first = True
        with contextlib.suppress(QueueClosed):
            while True:
                unit = await units.get()
                # A session puts a unit's events right behind it: what begins in a unit is told before, what ends after.
                now = [await events.get() for _ in range(len(events))]
                for event in now:
                    if isinstance(event, PlaybackStarted):
                        await self._send(Started(event.utterance, event.pts))
                picture = unit.image.tobytes() if first or unit.fresh else None
                await self._send(Unit(unit.pts, unit.speaking, unit.samples.astype("<i2").tobytes(), picture))
                for event in now:
                    if not isinstance(event, PlaybackStarted):
                        await self._send(Finished(event.utterance, event.position_samples, event.interrupted))
                first = False
        ending = self._live_session.ending
        await self._socket.close(code=ending.code, message=f"{ending.reason}: {ending.detail}".encode())

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, Encoding.MSGPACK)
        assert isinstance(data, bytes)
        with contextlib.suppress(ConnectionError):  # the client has gone, which ends `run`
            await self._socket.send_bytes(data)

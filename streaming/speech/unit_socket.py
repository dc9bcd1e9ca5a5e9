"""The units websocket, for programs beside the server: a session's frames, their sound and its playback events.

A browser gets the same units through WebRTC; here they have no codec. They serve agents that publish them elsewhere and
programs that need each picture with its sound. 25 units a second; a slow reader loses the oldest, sound and picture
together, but no event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aiohttp import web

from engine.media import FPS, MediaUnit, PlaybackFinished, PlaybackStarted
from engine.queues import MediaQueue
from streaming.server.live_session import LiveSession
from streaming.speech.protocol import Encoding, Finished, ServerMessage, SessionReady, Started, Unit, encode

BACKLOG_UNITS = 10


class UnitSocket:
    """Sends units until the client leaves; its messages are ignored."""

    def __init__(self, socket: web.WebSocketResponse, live_session: LiveSession):
        self._socket = socket
        self._live_session = live_session
        self._session = live_session.session

    async def run(self, request: web.Request) -> None:
        """Serve until the client leaves or the session ends. Raises SessionClosedError if it has ended before."""
        units = self._session.subscribe(BACKLOG_UNITS)
        avatar = self._session.avatar
        try:
            await self._socket.prepare(request)
            await self._send(
                SessionReady(self._session.id, self._live_session.avatar, avatar.width, avatar.height, FPS, ())
            )
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._forward(units))
                async for _ in self._socket:
                    pass
                sending.cancel()
        finally:
            self._session.unsubscribe(units)

    async def _forward(self, units: MediaQueue[MediaUnit]) -> None:
        first = True
        async for unit in units:
            for message in messages_of(unit, whole=first or unit.fresh):
                await self._send(message)
            first = False
        ending = self._live_session.ending
        await self._socket.close(code=ending.code, message=f"{ending.reason}: {ending.detail}".encode())

    async def _send(self, message: ServerMessage) -> None:
        data = encode(message, Encoding.MSGPACK)
        assert isinstance(data, bytes)
        with contextlib.suppress(ConnectionError):  # the client has left, which ends `run`
            await self._socket.send_bytes(data)


def messages_of(unit: MediaUnit, *, whole: bool) -> Iterator[ServerMessage]:
    """The unit between its playback events: starts before it, ends after it. `whole`: with its picture."""
    for event in unit.events:
        if isinstance(event, PlaybackStarted):
            yield Started(event.utterance, event.pts)
    picture = unit.image.tobytes() if whole else None
    yield Unit(unit.pts, unit.speaking, unit.samples.astype("<i2").tobytes(), picture)
    for event in unit.events:
        if isinstance(event, PlaybackFinished):
            yield Finished(event.utterance, event.position_samples, event.interrupted)

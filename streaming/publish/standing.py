"""A session of the server itself that is published without any viewer, for as long as the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.avatar.avatar import Avatar
from engine.errors import DrainingError, UnknownAvatarError
from streaming.config import BroadcastConfig, EncoderConfig
from streaming.publish.sinks import open_sink
from streaming.server.auth import Secrets
from streaming.server.live_session import LiveSession
from streaming.server.live_sessions import LiveSessions

log = logging.getLogger(__name__)

REOPEN_S = 1.0  # after a session that failed


@asynccontextmanager
async def on_air(
    live_sessions: LiveSessions,
    avatars: dict[str, Avatar],
    config: BroadcastConfig,
    encoder: EncoderConfig,
    secrets: Secrets,
) -> AsyncIterator[LiveSession | None]:
    """Broadcast as `config` says for the time of the block; None where it names nothing to publish to.

    Raises PublishError, UnknownAvatarError, CapacityError.
    """
    if not config.publish:
        yield None
        return
    station = StandingBroadcast(live_sessions, avatars, config, encoder, secrets.broadcast)
    async with asyncio.TaskGroup() as tasks:
        live_session = await station.open()
        keeping = tasks.create_task(station.keep(live_session))
        yield live_session
        keeping.cancel()


class StandingBroadcast:
    """Opens its session, publishes it to all of `--publish`, and opens another one if it ends before the server does.

    Speech comes through the session's websocket, as for any session: its id and token are known beforehand.
    """

    def __init__(
        self,
        live_sessions: LiveSessions,
        avatars: dict[str, Avatar],
        config: BroadcastConfig,
        encoder: EncoderConfig,
        token: str | None,
    ):
        """UnknownAvatarError, and PublishError for what cannot be published to: before anything is opened."""
        self.avatar = config.publish_avatar or next(iter(avatars))
        if self.avatar not in avatars:
            raise UnknownAvatarError(f"no avatar {self.avatar!r} to publish; there are {', '.join(sorted(avatars))}")
        self._live_sessions, self._config, self._token = live_sessions, config, token
        self._sinks = [(url, open_sink(url, avatars[self.avatar], encoder)) for url in config.publish]

    async def open(self) -> LiveSession:
        """The first session, published. CapacityError."""
        live_session = await self._live_sessions.open_standing(self.avatar, self._config.publish_session, self._token)
        self._token = live_session.token
        for url, sink in self._sinks:
            live_session.publish(url, sink)
        return live_session

    async def keep(self, live_session: LiveSession) -> None:
        """Open the session again whenever it ends, until the server stops."""
        while True:
            await live_session.ended()
            await asyncio.sleep(REOPEN_S)
            try:
                log.warning(
                    "session %s ended: %s; opening it again", self._config.publish_session, live_session.ending.detail
                )
                live_session = await self.open()
            except DrainingError:
                return

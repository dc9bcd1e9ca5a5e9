"""The standing broadcast: a session that the server itself opens and publishes for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.avatar.avatar import Avatar
from engine.errors import CapacityError, DrainingError, SessionClosedError, UnknownAvatarError
from streaming.config import BroadcastConfig, EncoderConfig
from streaming.publish.sinks import open_sink
from streaming.server.auth import Secrets
from streaming.server.live_session import LiveSession
from streaming.server.live_sessions import LiveSessions

log = logging.getLogger(__name__)

REOPEN_S = 1.0  # between the end of the session, or an attempt to open it, and the next attempt


@asynccontextmanager
async def standing_broadcast(
    live_sessions: LiveSessions,
    avatars: dict[str, Avatar],
    config: BroadcastConfig,
    encoder: EncoderConfig,
    secrets: Secrets,
) -> AsyncIterator[LiveSession | None]:
    """Keep the broadcast of `config` running during the block; yields None if it names no destination.

    Raises PublishError, UnknownAvatarError, CapacityError.
    """
    if not config.publish:
        yield None
        return
    broadcast = StandingBroadcast(live_sessions, avatars, config, encoder, secrets.broadcast)
    async with asyncio.TaskGroup() as tasks:
        live_session = await broadcast.open()
        reopening = tasks.create_task(broadcast.reopen_after(live_session))
        yield live_session
        reopening.cancel()


class StandingBroadcast:
    """Opens a session, publishes it to every `--publish`, and opens another one if it ends before the server does.

    Speech comes through the session's websocket, as for any session. The next session has the same id and token.
    """

    def __init__(
        self,
        live_sessions: LiveSessions,
        avatars: dict[str, Avatar],
        config: BroadcastConfig,
        encoder: EncoderConfig,
        token: str | None,
    ):
        """Checks all destinations before anything is opened. Raises UnknownAvatarError, PublishError."""
        self.avatar = config.publish_avatar or next(iter(avatars))
        if self.avatar not in avatars:
            raise UnknownAvatarError(
                f"no avatar {self.avatar!r} to publish; expected one of {', '.join(sorted(avatars))}"
            )
        self._live_sessions, self._config, self._token = live_sessions, config, token
        self._sinks = [(url, open_sink(url, avatars[self.avatar], encoder)) for url in config.publish]

    async def open(self) -> LiveSession:
        """Open and publish a session. Raises CapacityError, DrainingError."""
        live_session = await self._live_sessions.open_standing(self.avatar, self._config.publish_session, self._token)
        self._token = live_session.token
        for url, sink in self._sinks:
            live_session.publish(url, sink)
        return live_session

    async def reopen_after(self, live_session: LiveSession) -> None:
        """Open the session again whenever it ends, until the server stops; a full machine is tried every REOPEN_S."""
        while True:
            await live_session.ended()
            await asyncio.sleep(REOPEN_S)
            ended = live_session.ending.detail
            log.warning("session %s ended: %s; opening it again", self._config.publish_session, ended)
            try:
                live_session = await self.open()
            except DrainingError:
                return
            except (CapacityError, SessionClosedError) as error:
                log.warning("session %s cannot be opened yet: %s", self._config.publish_session, error)

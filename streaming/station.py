"""Station: a session of the server itself that is published without any viewer, for as long as the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.avatar import Avatar
from engine.config import BroadcastConfig, EncoderConfig
from engine.errors import DrainingError, UnknownAvatarError
from streaming.auth import Secrets
from streaming.lease import Lease
from streaming.leases import Leases
from streaming.publish import open_sink

log = logging.getLogger(__name__)

REOPEN_S = 1.0  # after a session that failed


@asynccontextmanager
async def on_air(
    leases: Leases, avatars: dict[str, Avatar], config: BroadcastConfig, encoder: EncoderConfig, secrets: Secrets
) -> AsyncIterator[Lease | None]:
    """Broadcast as `config` says for the time of the block; None where it names nothing to publish to.

    Raises PublishError, UnknownAvatarError, CapacityError.
    """
    if not config.publish:
        yield None
        return
    station = Station(leases, avatars, config, encoder, secrets.broadcast)
    async with asyncio.TaskGroup() as tasks:
        lease = await station.open()
        keeping = tasks.create_task(station.keep(lease))
        yield lease
        keeping.cancel()


class Station:
    """Opens its session, publishes it to all of `--publish`, and opens another one if it ends before the server does.

    Speech comes through the session's websocket, as for any session: its id and token are known beforehand.
    """

    def __init__(
        self,
        leases: Leases,
        avatars: dict[str, Avatar],
        config: BroadcastConfig,
        encoder: EncoderConfig,
        token: str | None,
    ):
        """UnknownAvatarError, and PublishError for what cannot be published to: before anything is opened."""
        self.avatar = config.publish_avatar or next(iter(avatars))
        if self.avatar not in avatars:
            raise UnknownAvatarError(f"no avatar {self.avatar!r} to publish; there are {', '.join(sorted(avatars))}")
        self._leases, self._config, self._token = leases, config, token
        self._sinks = [(url, open_sink(url, avatars[self.avatar], encoder)) for url in config.publish]

    async def open(self) -> Lease:
        """The first session, published. CapacityError."""
        lease = await self._leases.open_standing(self.avatar, self._config.publish_session, self._token)
        self._token = lease.token
        for url, sink in self._sinks:
            lease.publish(url, sink)
        return lease

    async def keep(self, lease: Lease) -> None:
        """Open the session again whenever it ends, until the server stops."""
        while True:
            await lease.ended()
            await asyncio.sleep(REOPEN_S)
            try:
                log.warning("session %s ended: %s; opening it again", self._config.publish_session, lease.ending.detail)
                lease = await self.open()
            except DrainingError:
                return

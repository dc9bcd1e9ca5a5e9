"""Director: the actor that is the cluster's public door. Sessions do not depend on it once they are open."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from engine.errors import PersonaStreamError
from streaming.cluster.config import NodeSettings
from streaming.cluster.director_routes import DirectorRoutes
from streaming.cluster.fleet import Fleet
from streaming.cluster.library import Library, LibraryEntry
from streaming.config import ServerConfig
from streaming.process import set_up_log
from streaming.server.catalog import Sample
from streaming.server.http_errors import connection_log

log = logging.getLogger(__name__)

SHUTDOWN_S = 2.0


class Director:
    """Serves from its creation on; Ray starts it again after a crash, and it then finds its nodes by their names.

    config: of its own HTTP server; that of the nodes is in their `settings`.
    """

    def __init__(
        self,
        settings: NodeSettings,
        config: ServerConfig,
        entries: tuple[LibraryEntry, ...],
        samples: Mapping[str, Sample],
    ):
        set_up_log()
        library = Library(entries)
        self._fleet, self._config = Fleet(settings, library), config
        self._app = DirectorRoutes(self._fleet, library, config, settings.secrets, samples).app()
        self._url = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._serve())  # lives as long as the actor

    async def url(self) -> str:
        """Its address, once it listens. Raises PersonaStreamError where it cannot."""
        return str(await asyncio.shield(self._url))

    async def status(self) -> list[dict[str, Any]]:
        """One row for each node."""
        rows = [
            {
                "node": name,
                "state": "draining" if report.draining else "ready",
                "url": report.url,
                "sessions": report.sessions,
                "room": max(0, report.room),
                "viewers": report.viewers,
                "avatars": sorted(report.avatars),
                "device": report.device,
            }
            for name, report in self._fleet.reports.items()
        ]
        return rows + [{"node": name, "state": "starting"} for name in self._fleet.starting]

    async def drain(self, node: str) -> None:
        """End a node, or all of a machine, after their sessions. Raises ClusterError."""
        await self._fleet.drain(node)

    async def end(self) -> None:
        """End all nodes after their sessions."""
        await self._fleet.end()

    async def _serve(self) -> None:
        try:
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fleet.run())
                await self._fleet.known()
                runner = web.AppRunner(self._app, access_log=None, logger=connection_log(), shutdown_timeout=SHUTDOWN_S)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await self._listen(runner)
                host, port = runner.addresses[0][:2]
                self._url.set_result(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        except* Exception as group:
            if self._url.done():
                log.exception("director.failed")
                os._exit(1)  # Ray starts it again
            self._url.set_exception(group.exceptions[0])

    async def _listen(self, runner: web.AppRunner) -> None:
        host, port = self._config.host, self._config.port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise PersonaStreamError(
                f"{host} port {port} cannot be opened ({error.strerror or error}); choose others with --host and --port"
            ) from error

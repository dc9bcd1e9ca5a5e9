"""Node: the actor that runs an engine and its server on one machine, or on one GPU of it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import ray

from engine.backends.select import backend_for, describe
from engine.live.engine import Engine
from streaming.cluster.config import NodeSettings
from streaming.cluster.library import AvatarSource
from streaming.cluster.placement import NodeReport
from streaming.process import freeze_garbage, set_up_log
from streaming.server.app import Server
from streaming.server.cors import is_loopback
from streaming.voices.configured import open_voices

log = logging.getLogger(__name__)


class Node:
    """Serves from `start` on. port: to listen at; 0: any free one.

    Ray creates it again after a crash. Its sessions are then gone, and it has to be started.
    """

    def __init__(self, settings: NodeSettings, port: int):
        set_up_log()
        self._settings = settings
        self._config = dataclasses.replace(
            settings.server, host=host_of(settings.server.host), port=port, base_path="", proxies=0
        )
        self._run = secrets.token_hex(4)
        self._draining, self._serving = asyncio.Event(), asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None  # the actor's own: it lives as long as the actor

    async def start(self, first: AvatarSource) -> None:
        """Serve, unless it does; returns at once. first: the avatar by which the engine measures the device. Others are
        loaded when a session asks for them."""
        self._task = self._task or asyncio.get_running_loop().create_task(self._serve(first))

    async def report(self) -> NodeReport | None:
        """None before `start`. Raises what the engine's start raised."""
        if self._task is None:
            return None
        return await self._report()

    async def _report(self) -> NodeReport:
        engine, server, voices = await asyncio.shield(self._serving)
        draining = server.live_sessions.draining
        return NodeReport(
            run=self._run,
            url=self._url(server),
            sessions=len(server.live_sessions),
            max_sessions=self._config.max_sessions,
            room=0 if draining else engine.room,
            viewers=server.live_sessions.viewers,
            max_viewers=self._config.max_viewers,
            avatars=frozenset(engine.avatars),
            voices=voices,
            draining=draining,
            device=describe(engine.backend.device),
        )

    async def open(self, avatar: AvatarSource, client: str, origin: str | None) -> tuple[dict[str, Any], NodeReport]:
        """Open a session for a client at the address `client`, on a page of `origin`, and load the avatar for it.

        Returns the answer without addresses. Raises CapacityError, QuotaError, DrainingError, AvatarFileError.
        """
        engine, server, _ = await asyncio.shield(self._serving)
        if avatar.key not in engine.avatars:
            await server.avatars.load(avatar.key, await avatar.fetch())
        session_id = f"{self._run}-{secrets.token_hex(8)}"
        session = await server.open_session(avatar.key, client, session_id, origin)
        return session, await self._report()

    async def drain(self) -> None:
        """Open no more sessions, wait until the open ones have ended, at most `drain_s`, and end the actor for good."""
        self._draining.set()
        if self._task is not None:
            await self._task
        ray.actor.exit_actor()

    async def _serve(self, first: AvatarSource) -> None:
        settings = self._settings
        try:
            async with AsyncExitStack() as stack:
                path = await first.fetch()
                voices = await stack.enter_async_context(open_voices(settings.voices))
                backend = backend_for(settings.compute.device, settings.compute.quality)
                most, load = self._config.max_sessions, self._config.max_load
                engine = Engine({first.key: path}, settings.session, most, backend, load)
                await stack.enter_async_context(engine)
                server = Server(engine, self._config, voices, secrets=settings.secrets)
                await stack.enter_async_context(server)
                freeze_garbage()
                self._serving.set_result((engine, server, tuple(voices)))
                await self._draining.wait()
                await server.drain()
        except Exception as error:
            if self._serving.done():
                log.exception("node.failed")
                os._exit(1)  # Ray starts it again
            self._serving.set_exception(error)  # for everybody who asks

    def _url(self, server: Server) -> str:
        host, ip = socket.gethostname(), ray.util.get_node_ip_address()
        ip = self._config.host if is_loopback(self._config.host) else f"[{ip}]" if ":" in ip else ip
        return self._settings.cluster.node_url.format(ip=ip, host=host, port=urlsplit(server.url).port)


def host_of(host: str) -> str:
    """The address at which nodes listen when the director listens at `host`: all addresses, unless that is this
    machine's alone."""
    if is_loopback(host):
        return host
    return "::" if ":" in host else "0.0.0.0"

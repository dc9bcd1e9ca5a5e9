"""The command `personastream serve`: avatars live, with a page at / and the API under /v1."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from engine.backends.backend import Backend
from engine.backends.select import backend_for
from engine.config import ComputeConfig, SessionConfig
from engine.errors import AvatarFileError
from engine.live.engine import Engine
from streaming.commands.stop_signals import StopSignals, interrupting
from streaming.config import BroadcastConfig, ServerConfig, VoicesConfig
from streaming.process import freeze_garbage, set_up_log
from streaming.publish.encoders import check_encoder
from streaming.publish.standing import standing_broadcast
from streaming.race import race
from streaming.server.app import Server
from streaming.server.auth import BROADCAST_VARIABLE, Secrets
from streaming.server.catalog import list_samples
from streaming.server.live_session import LiveSession
from streaming.voices.configured import open_voices

log = logging.getLogger(__name__)

DEVICE_LOST = 3  # so that an orchestrator starts another process, maybe on another device
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells report it


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve avatars to browsers: a page at /, the API under /v1."""

    avatars: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The .avatar files; a file's name without its ending is the avatar's name."""
    samples: Path | None = None
    """A folder of WAV files that the page offers to play."""
    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = field(default_factory=ServerConfig)
    broadcast: Annotated[BroadcastConfig, tyro.conf.arg(name=""), tyro.conf.UseAppendAction] = field(
        default_factory=BroadcastConfig
    )
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    voices: VoicesConfig = field(default_factory=VoicesConfig)

    def run(self) -> int:
        """Serve until a signal stops it; returns the exit code."""
        set_up_log()
        try:
            return asyncio.run(self.serve())
        except KeyboardInterrupt:
            log.info("server.stop before it was started")
            return INTERRUPTED

    async def serve(self, backend: Backend | None = None) -> int:
        """Serve until the first SIGINT or SIGTERM or until the device is lost, then drain: at most `drain_s`, or until
        the second signal. Returns the exit code. backend: by default the one
        of the settings.

        Raises KeyboardInterrupt for a signal during the start.
        """
        check_encoder(self.server.encoder)
        samples, secrets = list_samples(self.samples), Secrets.from_environment()
        avatars = avatars_by_name(self.avatars)
        async with contextlib.AsyncExitStack() as stack:
            with interrupting():
                voices = await stack.enter_async_context(open_voices(self.voices))
                compute = self.compute
                backend = backend or backend_for(compute.device, compute.quality, compute.gpu_mode)
                most, load = self.server.max_sessions, self.server.max_load
                engine = await stack.enter_async_context(Engine(avatars, self.session, most, backend, load))
                server = await stack.enter_async_context(Server(engine, self.server, voices, samples, secrets))
                freeze_garbage()
            with StopSignals() as stops:
                async with standing_broadcast(
                    server.live_sessions, engine.avatars, self.broadcast, self.server.encoder, secrets
                ) as live_session:
                    announce(server, engine, live_session, secrets)
                    await race(stops.first.wait(), engine.failed.wait())
                    log.info("server.drain within_s=%.0f sessions=%d", self.server.drain_s, len(server.live_sessions))
                    await race(server.drain(), stops.second.wait())
        return DEVICE_LOST if engine.failure else 0


def announce(server: Server, engine: Engine, live_session: LiveSession | None, secrets: Secrets) -> None:
    """Print the server's address, and how to speak in the standing broadcast `live_session` if there is one."""
    console = Console(soft_wrap=True)
    console.print(f"[bold]personastream[/bold] serves {', '.join(engine.avatars)} at [link]{server.url}/[/link]")
    if live_session is not None:
        speech = f"{server.url}/v1/sessions/{live_session.session.id}/speech"
        token = f"${BROADCAST_VARIABLE}" if secrets.broadcast else live_session.token
        console.print(f"{live_session.avatar} is published; speech: {speech}?token={token}", highlight=False)


def avatars_by_name(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The files by avatar name. Raises AvatarFileError if there is none, or two have the same name."""
    named = {path.stem: path for path in paths}
    if not named:
        raise AvatarFileError("no .avatar file given; make one with `precompute SPEAKER.mp4`")
    if len(named) < len(paths):
        raise AvatarFileError(f"two of {', '.join(map(str, paths))} have the same name; rename one")
    return named

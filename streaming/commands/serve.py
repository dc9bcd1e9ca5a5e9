"""The command `personastream serve`: avatars live, with a page at / and the API under /v1."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from engine.backends.select import backend_for
from engine.config import ComputeConfig, SessionConfig
from engine.errors import AvatarFileError
from engine.live.engine import Engine
from streaming.config import BroadcastConfig, ServerConfig, VoicesConfig
from streaming.publish.encoders import check_encoder
from streaming.publish.standing import on_air
from streaming.server.app import Server
from streaming.server.auth import BROADCAST_VARIABLE, Secrets
from streaming.server.catalog import list_samples
from streaming.voices.configured import open_voices

log = logging.getLogger(__name__)


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
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for chatty in ("aiortc", "aioice", "aiohttp.access"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        asyncio.run(self._serve())
        return 0

    async def _serve(self) -> None:
        check_encoder(self.server.encoder)
        stops = Stops()
        samples, secrets = list_samples(self.samples), Secrets.from_environment()
        avatars = avatars_by_name(self.avatars)
        async with (
            open_voices(self.voices) as voices,
            Engine(
                avatars,
                self.session,
                self.server.max_sessions,
                backend_for(self.compute.device, self.compute.quality),
                self.server.max_load,
            ) as engine,
            Server(engine, self.server, voices, samples, secrets) as server,
        ):
            settle_garbage()
            console = Console(soft_wrap=True)
            async with on_air(
                server.live_sessions, engine.avatars, self.broadcast, self.server.encoder, secrets
            ) as live_session:
                console.print(
                    f"[bold]personastream[/bold] serves {', '.join(engine.avatars)} at [link]{server.url}/[/link]"
                )
                if live_session is not None:
                    speech = f"{server.url}/v1/sessions/{live_session.session.id}/speech"
                    known = f"${BROADCAST_VARIABLE}" if secrets.broadcast else live_session.token
                    console.print(f"{live_session.avatar} is on air; speech: {speech}?token={known}", highlight=False)
                await stops.first.wait()
                log.info("server.drain within_s=%.0f sessions=%d", self.server.drain_s, len(server.live_sessions))
                await unless(stops.second, server.drain())


def settle_garbage() -> None:
    """Keep what stays as long as the process away from the garbage collector.

    It is some 300,000 objects of torch and others. A full collection would look at them all, which stops the pictures
    for a tenth of a second and more, and comes so seldom therefore that hundreds of closed peers wait for it.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # the next full one comes when a quarter more is there than the last one left


class Stops:
    """The signals to stop: the first asks to finish, the second not to."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do `work` to its end, or until `stop` is set."""
    async with asyncio.TaskGroup() as tasks:
        working, stopping = tasks.create_task(work), tasks.create_task(stop.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        stopping.cancel()


def avatars_by_name(paths: tuple[Path, ...]) -> dict[str, Path]:
    """The files by the name that clients ask for; AvatarFileError if there is none, or two share a name."""
    named = {path.stem: path for path in paths}
    if not named:
        raise AvatarFileError("no .avatar file given; make one with `precompute SPEAKER.mp4`")
    if len(named) < len(paths):
        raise AvatarFileError(f"two of {', '.join(map(str, paths))} have the same name; rename one")
    return named

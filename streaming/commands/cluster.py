"""The command `personastream cluster`: one API over many machines; `cluster status` and `cluster drain`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from engine.cluster import import_ray, joined
from engine.config import ComputeConfig, SessionConfig
from streaming.cluster.config import ClusterConfig, NodeSettings
from streaming.commands.serve import INTERRUPTED, avatars_by_name
from streaming.commands.stop_signals import StopSignals
from streaming.config import ServerConfig, VoicesConfig
from streaming.process import set_up_log
from streaming.publish.encoders import check_encoder
from streaming.race import race
from streaming.server.app import check_config
from streaming.server.auth import Secrets
from streaming.server.catalog import list_samples

HERE = "here"
PIPE_COLUMNS = 200  # a program that reads the table wants no wrapped lines
COLUMNS = ("node", "state", "url", "sessions", "room", "viewers", "avatars", "device")


@dataclass(frozen=True, kw_only=True)
class ClusterServe:
    """Serve avatars from many machines: join the Ray cluster of this machine, or start one.

    A node runs on every machine, or on every GPU, of the Ray cluster. Clients open sessions here and then talk to the
    node that has them.
    """

    avatars: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The .avatar files, on this machine; nodes get them when a session asks for them."""
    address: str | None = None
    """HEAD:6379 of the Ray cluster; by default the one that this machine belongs to, or a new one."""
    samples: Path | None = None
    """A folder of WAV files that the page offers to play."""
    cluster: Annotated[ClusterConfig, tyro.conf.arg(name="")] = field(default_factory=ClusterConfig)
    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = field(default_factory=ServerConfig)
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    voices: VoicesConfig = field(default_factory=VoicesConfig)

    def run(self) -> int:
        """Serve until a signal stops it; returns the exit code."""
        set_up_log()
        secrets, samples = Secrets.from_environment(), list_samples(self.samples)
        check_encoder(self.server.encoder)
        check_config(self.server, secrets)
        settings = NodeSettings(
            server=self.server,
            cluster=self.cluster,
            compute=self.compute,
            session=self.session,
            voices=self.voices,
            secrets=secrets,
        )
        connection = _director()
        named = avatars_by_name(self.avatars)
        entries = connection.entries(named, self.cluster.shared)
        try:
            with joined(self.address, start=True) as address:
                director = connection.start_director(settings, self.server, entries, samples)
                try:
                    asyncio.run(self._serve(connection.answer, director, address, list(named)))
                finally:
                    connection.kill_all(director)
        except KeyboardInterrupt:
            return INTERRUPTED
        return 0

    async def _serve(self, answer: Any, director: Any, address: str, names: list[str]) -> None:
        """Serve until the first signal, then end the nodes: at most `drain_s`, or until the second signal."""
        console = Console(soft_wrap=True)
        with StopSignals() as stops:
            await race(self._announce(answer, director, address, names, console), stops.first.wait())
            await stops.first.wait()
            console.print(f"ending all nodes within {self.server.drain_s:.0f} s; a second signal ends them at once")
            await race(answer(director.end.remote()), stops.second.wait())

    async def _announce(self, answer: Any, director: Any, address: str, names: list[str], console: Console) -> None:
        url = await answer(director.url.remote())
        console.print(f"[bold]personastream[/bold] serves {', '.join(names)} at [link]{url}/[/link]")
        console.print(f"other machines join with: ray start --address {address}", highlight=False)


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """Show the nodes of the cluster."""

    address: str | None = None
    """HEAD:6379 of the Ray cluster; by default the one that this machine belongs to."""

    def run(self) -> int:
        director = _director()
        with joined(self.address, start=False):
            rows = asyncio.run(director.answer(director.find_director().status.remote()))
        table = Table(*COLUMNS, box=None)
        for row in rows:
            table.add_row(*(_cell(row.get(column, "")) for column in COLUMNS))
        Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
        return 0


@dataclass(frozen=True, kw_only=True)
class ClusterDrain:
    """End a node after its sessions. Its machine gets no other one until the director restarts."""

    node: Annotated[str, tyro.conf.Positional]
    """Its name, as `cluster status` shows it; here: all nodes of this machine."""
    address: str | None = None
    """HEAD:6379 of the Ray cluster; by default the one that this machine belongs to."""

    def run(self) -> int:
        director = _director()
        with joined(self.address, start=False):
            node = director.this_machine() if self.node == HERE else self.node
            asyncio.run(director.answer(director.find_director().drain.remote(node)))
        Console().print(f"node {self.node} has ended")
        return 0


Cluster = (
    Annotated[ClusterServe, tyro.conf.subcommand("serve", prefix_name=False)]
    | Annotated[ClusterStatus, tyro.conf.subcommand("status", prefix_name=False)]
    | Annotated[ClusterDrain, tyro.conf.subcommand("drain", prefix_name=False)]
)
SUBCOMMANDS = ("serve", "status", "drain", "--help", "-h")


def with_default(arguments: list[str]) -> list[str]:
    """`cluster anna.avatar` is short for `cluster serve anna.avatar`."""
    if arguments[:1] == ["cluster"] and not (arguments[1:] and arguments[1] in SUBCOMMANDS):
        return ["cluster", "serve", *arguments[1:]]
    return arguments


def _director() -> ModuleType:
    """The module that asks the director; it imports Ray, which not every installation has. Raises DependencyError."""
    import_ray()
    from streaming.cluster import connection

    return connection


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)

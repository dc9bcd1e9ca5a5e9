"""The command line `personastream`: serve, cluster, demo, mic over the network; dub, bench, doctor, export without."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from engine.commands.bench import Bench
from engine.commands.doctor import Doctor
from engine.commands.dub import Dub
from engine.commands.export import Export
from engine.errors import PersonaStreamError
from engine.signals import EXIT_CODE, interruptible
from streaming.commands.cluster import Cluster, ClusterDrain, ClusterServe, ClusterStatus, with_default
from streaming.commands.demo import Demo
from streaming.commands.mic import Mic
from streaming.commands.serve import Serve

USAGE_ERROR = 2

Command = (
    Annotated[Serve, tyro.conf.subcommand("serve", prefix_name=False)]
    | Annotated[Cluster, tyro.conf.subcommand("cluster", prefix_name=False)]
    | Annotated[Demo, tyro.conf.subcommand("demo", prefix_name=False)]
    | Annotated[Mic, tyro.conf.subcommand("mic", prefix_name=False)]
    | Annotated[Dub, tyro.conf.subcommand("dub", prefix_name=False)]
    | Annotated[Bench, tyro.conf.subcommand("bench", prefix_name=False)]
    | Annotated[Doctor, tyro.conf.subcommand("doctor", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
)

Serving = Serve | Demo | Mic | ClusterServe | ClusterStatus | ClusterDrain  # they have an event loop


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command of `arguments`, by default the process's own, and exit with its code.

    A PersonaStreamError is printed as one red line, with exit code 2.
    """
    code = USAGE_ERROR
    try:
        given = with_default(list(sys.argv[1:] if arguments is None else arguments))
        command: Serving | Dub | Bench | Doctor | Export = tyro.cli(Command, prog="personastream", args=given)
        code = command.run() if isinstance(command, Serving) else _interruptible(command)
    except* PersonaStreamError as group:  # task groups wrap it
        for error in leaves(group):
            Console(stderr=True, soft_wrap=True).print(f"[red]{escape(str(error))}[/red]")
    sys.exit(code)


def _interruptible(command: Dub | Bench | Doctor | Export) -> int:
    """Run a command that has no event loop; a signal ends it after it has removed its temporary files."""
    try:
        with interruptible():
            return command.run()
    except KeyboardInterrupt as interrupt:
        Console(stderr=True, soft_wrap=True).print(str(interrupt) or "interrupted; nothing was written")
        return EXIT_CODE


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group, at any depth."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]

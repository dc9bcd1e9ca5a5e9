"""The command `personastream`: serve avatars live, speak as one; and, without a network, dub, bench, doctor, export."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from engine.commands.bench import Bench
from engine.commands.doctor import Doctor
from engine.commands.dub import Dub
from engine.commands.export import Export
from engine.errors import PersonaStreamError
from streaming.commands.serve import Serve
from streaming.local.mic import Mic

log = logging.getLogger(__name__)

USAGE_ERROR = 2


Command = (
    Annotated[Serve, tyro.conf.subcommand("serve", prefix_name=False)]
    | Annotated[Mic, tyro.conf.subcommand("mic", prefix_name=False)]
    | Annotated[Dub, tyro.conf.subcommand("dub", prefix_name=False)]
    | Annotated[Bench, tyro.conf.subcommand("bench", prefix_name=False)]
    | Annotated[Doctor, tyro.conf.subcommand("doctor", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
)


def main() -> None:
    """Run one command; an error that we raise on purpose is one red line, and exit code 2."""
    command: Serve | Mic | Dub | Bench | Doctor | Export = tyro.cli(Command, prog="personastream")
    code = USAGE_ERROR
    try:
        code = command.run()
    except* PersonaStreamError as group:  # a task group on its way may have wrapped it
        for error in leaves(group):
            Console(stderr=True, soft_wrap=True).print(f"[red]{escape(str(error))}[/red]")
    sys.exit(code)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


if __name__ == "__main__":
    main()

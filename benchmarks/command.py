"""How every benchmark is run from the command line."""

from __future__ import annotations

import sys
from typing import Any, Protocol

import tyro

from engine.errors import PersonaStreamError


class Command(Protocol):
    def run(self) -> Any: ...


def run(command: type[Command], prog: str) -> None:
    """Make the command of the arguments and run it; an error that we raise on purpose is one line, and exit code 2."""
    try:
        tyro.cli(command, prog=prog).run()
    except PersonaStreamError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

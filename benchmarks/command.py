"""Runs a benchmark from the command line."""

from __future__ import annotations

import sys
from typing import Any, Protocol

import tyro

from engine.errors import PersonaStreamError


class Command(Protocol):
    def run(self) -> Any: ...


def run(command: type[Command], prog: str) -> None:
    """Parse the arguments and run the command. A PersonaStreamError is printed as one line, with exit code 2."""
    try:
        tyro.cli(command, prog=prog).run()
    except PersonaStreamError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

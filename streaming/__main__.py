"""The command `personastream`. Importing its modules takes seconds; Ctrl-C during these prints no traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from engine.signals import starting


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default the process's own, and exit with its code."""
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"personastream {version('personastream')}")
        return
    with starting():
        from streaming.commands.main import main as command
    command(arguments)


if __name__ == "__main__":
    main()

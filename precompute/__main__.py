"""The command `precompute`. Importing its modules takes seconds; Ctrl-C during these prints no traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.signals import starting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default the process's own. Returns the exit code."""
    with starting():
        from precompute.command import main as command
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())

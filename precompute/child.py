"""A child process that works: a job as a line of JSON on stdin, events as lines of JSON on stdout.

`engine.child` starts it and explains the contract.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from engine.errors import MediaError, PersonaStreamError
from engine.signals import EXIT_CODE, end_with, interruptible, starting

FAILED = 2

Run = Callable[[dict[str, Any]], dict[str, Any]]
"""Does a job and returns its report. Raises PersonaStreamError."""


def tell(event: str, **facts: Any) -> None:
    """Write one event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def tell_progress(stage: str, done: int, total: int, left_s: float | None) -> None:
    tell("progress", stage=stage, done=done, total=total, left_s=None if left_s is None else round(left_s, 1))


def tell_remark(code: str, text: str, at_s: float | None) -> None:
    tell("remark", code=code, text=text, at_s=at_s)


def work(load: Callable[[], Run]) -> int:
    """Do the job on stdin. `load` imports what it needs, which takes seconds; Ctrl-C during these prints no traceback.

    Returns the exit code: 0 done, 2 for an error, 130 interrupted.
    """
    line = sys.stdin.buffer.readline()
    with starting():
        run = load()
    try:
        with interruptible():
            end_with(sys.stdin.buffer)
            tell("finished", report=run(json.loads(line)))
    except PersonaStreamError as error:
        at_s = error.at_s if isinstance(error, MediaError) else None
        tell("error", code=error.code, message=str(error), at_s=at_s)
        return FAILED
    except KeyboardInterrupt:
        return EXIT_CODE
    return 0

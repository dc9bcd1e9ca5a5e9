"""The process that dubs one video: a job as a line of JSON on stdin, events as lines of JSON on stdout.

`engine.dubbing` starts it and explains the contract.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.signals import EXIT_CODE, end_with, interruptible, starting

FAILED = 2


def tell(event: str, **facts: Any) -> None:
    """Write one event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def run(job: dict[str, Any]) -> None:
    """Do the job. Raises PersonaStreamError."""
    from precompute.dubbing.job import Dubbing, Options

    choices = dict(job.get("options", {}))
    if choices.get("report"):
        choices["report"] = Path(choices["report"])
    dubbing = Dubbing(
        Path(job["video"]),
        {key: Path(path) for key, path in job["speech"].items()},
        Path(job["output"]),
        Options(**choices),
        progress=lambda stage, done, total, left_s: tell(
            "progress", stage=stage, done=done, total=total, left_s=None if left_s is None else round(left_s, 1)
        ),
        on_remark=lambda remark: tell("remark", code=remark.code, text=remark.text, at_s=remark.at_s),
    )
    tell("finished", report=dubbing.run().data())


def main() -> int:
    """The exit code: 0 written, 2 for an error, 130 interrupted."""
    line = sys.stdin.buffer.readline()
    with starting():
        import precompute.dubbing.job  # noqa: F401  it takes seconds; Ctrl-C during these prints no traceback
        from engine.errors import MediaError, PersonaStreamError
    try:
        with interruptible():
            end_with(sys.stdin.buffer)
            run(json.loads(line))
    except PersonaStreamError as error:
        at_s = error.at_s if isinstance(error, MediaError) else None
        tell("error", code=error.code, message=str(error), at_s=at_s)
        return FAILED
    except KeyboardInterrupt:
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The process that dubs one video (`precompute.child`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from precompute.child import Run, tell_progress, tell_remark, work


def load() -> Run:
    from precompute.dubbing.job import Dubbing, Options

    def run(job: dict[str, Any]) -> dict[str, Any]:
        choices = dict(job.get("options", {}))
        if choices.get("report"):
            choices["report"] = Path(choices["report"])
        dubbing = Dubbing(
            Path(job["video"]),
            {key: Path(path) for key, path in job["speech"].items()},
            Path(job["output"]),
            Options(**choices),
            progress=tell_progress,
            on_remark=lambda remark: tell_remark(remark.code, remark.text, remark.at_s),
        )
        return dubbing.run().data()

    return run


if __name__ == "__main__":
    sys.exit(work(load))

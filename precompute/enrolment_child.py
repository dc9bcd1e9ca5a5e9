"""The process that makes one avatar (`precompute.child`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from precompute.child import Run, tell_progress, tell_remark, work

STAGES = {"face": 0.28, "fit": 0.14, "base": 0.06, "references": 0.03, "idle": 0.44, "report": 0.05}
"""The stages, and the usual share of the time that each takes."""


def load() -> Run:
    from precompute.enrolment import Enrolment, EnrolmentOptions
    from precompute.progress import Clock

    def run(job: dict[str, Any]) -> dict[str, Any]:
        enrolment = Enrolment(
            Path(job["video"]),
            Path(job["output"]),
            EnrolmentOptions(**job["options"]),
            progress=Clock(STAGES, tell_progress).tell,
            on_remark=lambda remark: tell_remark(remark.code, remark.text, remark.at_s),
        )
        return enrolment.run().manifest.summary

    return run


if __name__ == "__main__":
    sys.exit(work(load))

"""The enrolment of a speaker, as the parent of the process that does it sees it."""

from __future__ import annotations

from pathlib import Path

import engine.child
from engine.child import Work
from engine.errors import EnrolmentError

ENROLMENT = Work("enrolment", "making an avatar", "precompute.enrolment_child", EnrolmentError)


def encode_job(video: Path, output: Path, name: str, consent: str) -> bytes:
    """The line that tells the child what to do."""
    return engine.child.encode_job({"video": video, "output": output, "options": {"name": name, "consent": consent}})

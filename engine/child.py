"""Work that a child process does, as its parent sees it.

Dubbing and enrolment need the enrolment stack, which the engine does not import, and decode files of strangers:
whatever a file does to the child, the process that asked for the work lives. The child's contract:

stdin: the job as one line of JSON (`encode_job`); the pipe then stays open while the parent lives.
stdout: one event of JSON a line, and nothing else.
exit code: 0 after `finished`, 2 after `error`, 130 after a signal.

`precompute.child` is the child's side of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec

import engine.errors
from engine.errors import DependencyError, MediaError, PersonaStreamError
from engine.files import printable
from engine.signals import EXIT_CODE

STOP_S = 5.0  # after SIGTERM; the child needs less than one
LAST_WORDS_BYTES = 2_000
MISSING = re.compile(r"No module named '?([\w.]+)")

Report = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A kind of work: the process's name and the user's words for it, its module, and the error of its crashes."""

    process: str
    doing: str
    module: str
    crash: type[PersonaStreamError]

    @property
    def program(self) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", self.module)  # -P: a file of the user's folder is no module


class WorkProgress(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """`done` of `total` units of a stage are done; `left_s`: the time until the work is done, None: unknown."""

    stage: str
    done: int
    total: int
    left_s: float | None = None


class WorkRemark(msgspec.Struct, frozen=True, tag_field="event", tag="remark"):
    """Something that the user should know; `at_s`: where in the video, in seconds."""

    code: str
    text: str
    at_s: float | None = None


class _Failure(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    code: str
    message: str
    at_s: float | None = None


class _Finished(msgspec.Struct, frozen=True, tag_field="event", tag="finished"):
    report: Report


WorkEvent = WorkProgress | WorkRemark
Listener = Callable[[WorkEvent], None]


def ignore(event: WorkEvent) -> None:
    """A listener that does nothing."""


class ChildEvents:
    """The events of one child, and what its end means.

    video: of which it works.  errors: the file that its stderr goes to.
    """

    def __init__(self, work: Work, video: Path, errors: BinaryIO | IO[bytes]):
        self._work, self._video, self._errors = work, printable(video), errors
        self._end: _Failure | _Finished | None = None

    def read(self, line: bytes) -> WorkEvent | None:
        """The event of a line of stdout; None for the last. Raises `work.crash` for a line that is no event."""
        try:
            event = msgspec.convert(json.loads(line), WorkProgress | WorkRemark | _Failure | _Finished)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise self._crash(
                f"wrote {line[:80]!r}, which is no event ({error}); check that all parts of personastream are of one "
                "version"
            ) from error
        if isinstance(event, WorkProgress | WorkRemark):
            return event
        self._end = event
        return None

    def end(self, code: int) -> Report:
        """The report of a child that ended with `code`. Raises the error that it reported, or `work.crash`."""
        if isinstance(self._end, _Finished):
            return self._end.report
        if self._end is not None:
            raise _error_of(self._end, self._work.crash)
        words = self._last_words()
        if missing := MISSING.search(words):
            raise DependencyError(
                f"{self._work.doing} needs the enrolment stack, and {missing[1]} is not installed; run `make setup`, "
                "or install personastream with its dependencies"
            )
        again = "try it again; if it happens again, report it"
        if code == EXIT_CODE:
            raise self._crash(f"was interrupted; {again}")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (the system does so when memory runs out)"
        raise self._crash(f"{how} and without a result; {again}. {words}".strip())

    def _crash(self, how: str) -> PersonaStreamError:
        return self._work.crash(f"{self._video}: the {self._work.process} process {how}")

    def _last_words(self) -> str:
        """The last line of stderr."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS_BYTES))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _error_of(failure: _Failure, crash: type[PersonaStreamError]) -> PersonaStreamError:
    """The typed error that the child reported; its message already names the time."""
    kinds = [kind for kind in vars(engine.errors).values() if isinstance(kind, type)]
    codes = {kind.code: kind for kind in kinds if issubclass(kind, PersonaStreamError)}
    error = codes.get(failure.code, crash)(failure.message)
    error.code = failure.code
    if isinstance(error, MediaError):
        error.at_s = failure.at_s
    return error


def encode_job(job: Mapping[str, Any]) -> bytes:
    """The line that tells the child what to do. In ASCII: names of files may hold bytes that are no text."""
    return json.dumps(job, default=os.fspath, allow_nan=False).encode() + b"\n"


def run_child(
    work: Work, video: Path, job: bytes, listen: Listener = ignore, *, program: Sequence[str] | None = None
) -> Report:
    """Do the work in a child process, which does not outlive this call, nor this process. Returns its report.

    job: a line of `encode_job`.  listen: gets the events.  program: the child's command.

    Raises the child's errors (`engine.errors`), DependencyError where the enrolment stack is missing, and `work.crash`
    for a child that crashed.
    """
    with tempfile.TemporaryFile() as errors, _child(work, program or work.program, errors) as child:
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its end says why it does not read
            child.stdin.write(job)
            child.stdin.flush()
        events = ChildEvents(work, video, errors)
        for line in child.stdout:
            if (event := events.read(line)) is not None:
                listen(event)
        return events.end(child.wait())


@contextlib.contextmanager
def _child(work: Work, program: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child for the time of the block; it is stopped where the block ends before it."""
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=errors)
    except OSError as error:
        raise work.crash(f"{program[0]} does not start ({error.strerror or error}); check its installation") from error
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for file in (child.stdin, child.stdout):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

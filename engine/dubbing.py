"""Visual dubbing of a video, as the parent of the process that does it sees it.

The work needs the enrolment stack, which the engine does not import, and decodes files of strangers: whatever a file
does to the child process, the process that asked for the dub lives. The child's contract:

stdin: the job as one line of JSON (`encode_job`); the pipe then stays open while the parent lives.
stdout: one event of JSON a line, and nothing else.
exit code: 0 after `finished`, 2 after `error`, 130 after a signal. Finished parts then stay in the folder `parts_of`.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from typing import IO, Annotated, Any, BinaryIO, Literal

import msgspec
import tyro

import engine.errors
from engine.errors import DependencyError, DubbingError, MediaError, PersonaStreamError, SettingError
from engine.files import printable
from engine.signals import EXIT_CODE

PROGRAM = (sys.executable, "-P", "-m", "precompute.dubbing")  # -P: a file of the user's folder is no module
KILLED = 9  # SIGKILL, which Windows lacks
STOP_S = 5.0  # after SIGTERM; the child needs less than one
LAST_WORDS_BYTES = 2_000
MAX_MIX_DB = 60.0
MISSING = re.compile(r"No module named '?([\w.]+)")

Length = Literal["video", "cut", "loop", "bounce", "stretch"]
Speech = str | os.PathLike[str] | Mapping[int, str | os.PathLike[str]]
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DubOptions:
    """How a video is dubbed."""

    length: Length = "video"
    """video: all of it, silent after the speech; cut: until the shorter of both ends; loop, bounce: the pictures
    repeat, from the start or there and back, until the speech ends; stretch: as long as the speech."""
    from_s: Annotated[float | None, tyro.conf.arg(name="from")] = None
    """Where in the video the speech begins, in seconds."""
    to_s: Annotated[float | None, tyro.conf.arg(name="to")] = None
    """Where it ends at the latest. Pictures outside this passage are not changed."""
    mix_db: Annotated[float | None, tyro.conf.arg(name="mix")] = None
    """Keep the video's own sound under the speech, lowered by this many decibels. Default: the speech replaces it."""
    report: Path | None = None
    """An HTML page to write: the faces and their numbers, what was changed in each shot, and what was not and why."""
    resume: bool = False
    """Continue the same dub, which was interrupted, behind its last finished part."""
    quality: Annotated[Literal["best", "fast"], tyro.conf.Suppress] = "best"  # the command has it for avatars too

    def __post_init__(self) -> None:
        start_s = self.from_s or 0.0
        if not 0 <= start_s < float("inf"):
            raise SettingError(f"--from {self.from_s}; expected seconds in the video, from 0")
        if self.to_s is not None and not start_s < self.to_s < float("inf"):
            raise SettingError(f"--to {self.to_s}; expected seconds in the video, after --from ({start_s:g})")
        if self.mix_db is not None and not 0 <= self.mix_db <= MAX_MIX_DB:
            raise SettingError(f"--mix {self.mix_db}; expected 0 to {MAX_MIX_DB:g} decibels")


class DubProgress(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """`done` of `total` units of a stage are done; `left_s`: the time that the whole dub still needs, None: unknown."""

    stage: str
    done: int
    total: int
    left_s: float | None = None


class DubRemark(msgspec.Struct, frozen=True, tag_field="event", tag="remark"):
    """Something that the user should know; `at_s`: where in the video."""

    code: str
    text: str
    at_s: float | None = None


class _Failure(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    code: str
    message: str
    at_s: float | None = None


class _Finished(msgspec.Struct, frozen=True, tag_field="event", tag="finished"):
    report: Report


DubEvent = DubProgress | DubRemark
Listener = Callable[[DubEvent], None]


def ignore(event: DubEvent) -> None:
    """A listener that does nothing."""


def parts_of(output: Path) -> Path:
    """The folder with the finished parts of an interrupted dub."""
    return output.with_name(f"{output.name}.parts")


def faces_of(speech: Speech, face: int | Literal["auto"] = "auto") -> dict[str, Path]:
    """Who speaks which sound file: `speech` by face number, or one file for `face`. Raises SettingError."""
    if isinstance(speech, Mapping) and face != "auto":
        raise SettingError(f"--face {face}: the speeches name their faces themselves; leave it out")
    if isinstance(speech, Mapping) and not speech:
        raise SettingError("no speech; expected a sound file, or one for each face that speaks")
    files = speech.items() if isinstance(speech, Mapping) else [(face, speech)]
    for number, _ in files:
        if number != "auto" and int(number) < 1:
            raise SettingError(f"face {number}; expected a number from 1, as the report shows them")
    return {str(number): Path(path) for number, path in files}


def encode_job(video: Path, speech: Mapping[str, Path], output: Path, options: DubOptions) -> bytes:
    """The line that tells the child what to do. In ASCII: names of files may hold bytes that are no text."""
    paths = {"video": video, "speech": speech, "output": output}
    job = {**paths, "options": dataclasses.asdict(options)}
    return json.dumps(job, default=os.fspath, allow_nan=False).encode() + b"\n"


class DubEvents:
    """The events of one child, and what its end means.

    errors: the file that its stderr goes to.
    """

    def __init__(self, video: Path, errors: BinaryIO | IO[bytes]):
        self._video, self._errors = printable(video), errors
        self._end: _Failure | _Finished | None = None

    def read(self, line: bytes) -> DubEvent | None:
        """The event of a line of stdout; None for the last. Raises DubbingError for a line that is no event."""
        try:
            event = msgspec.convert(json.loads(line), DubProgress | DubRemark | _Failure | _Finished)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise DubbingError(
                f"{self._video}: the dubbing process wrote {line[:80]!r}, which is no event ({error}); check that all "
                "parts of personastream are of one version"
            ) from error
        if isinstance(event, DubProgress | DubRemark):
            return event
        self._end = event
        return None

    def end(self, code: int) -> Report:
        """The report of a child that ended with `code`. Raises the error that it reported, or DubbingError."""
        if isinstance(self._end, _Finished):
            return self._end.report
        if self._end is not None:
            raise _error_of(self._end)
        words = self._last_words()
        if missing := MISSING.search(words):
            raise DependencyError(
                f"dubbing a video needs the enrolment stack, and {missing[1]} is not installed; run "
                "`pip install 'personastream[enroll]'`"
            )
        again = "try it again; if it happens again, report it"
        if code == EXIT_CODE:
            raise DubbingError(f"{self._video}: the dubbing process was interrupted; {again}")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -KILLED:
            how += " (the system does so when memory runs out)"
        raise DubbingError(f"{self._video}: the dubbing process {how} and without a result; {again}. {words}".strip())

    def _last_words(self) -> str:
        """The last line of stderr."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS_BYTES))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _error_of(failure: _Failure) -> PersonaStreamError:
    """The typed error that the child reported; its message already names the time."""
    kinds = [kind for kind in vars(engine.errors).values() if isinstance(kind, type)]
    codes = {kind.code: kind for kind in kinds if issubclass(kind, PersonaStreamError)}
    error = codes.get(failure.code, DubbingError)(failure.message)
    error.code = failure.code
    if isinstance(error, MediaError):
        error.at_s = failure.at_s
    return error


def dub_video(
    video: Path,
    speech: Mapping[str, Path],
    output: Path,
    options: DubOptions | None = None,
    listen: Listener = ignore,
    *,
    program: Sequence[str] = PROGRAM,
) -> Report:
    """Dub `video` in a child process, which does not outlive this call, nor this process. Returns its report.

    speech: sound files by face number, or by `auto`.  listen: gets the events.  program: the child's command.

    Raises the child's errors (`engine.errors`), DependencyError where the enrolment stack is missing, and DubbingError
    for a child that crashed.
    """
    with tempfile.TemporaryFile() as errors, _child(program, errors) as child:
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its end says why it does not read
            child.stdin.write(encode_job(video, speech, output, options or DubOptions()))
            child.stdin.flush()
        events = DubEvents(video, errors)
        for line in child.stdout:
            if (event := events.read(line)) is not None:
                listen(event)
        return events.end(child.wait())


@contextlib.contextmanager
def _child(program: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child for the time of the block; it is stopped where the block ends before it."""
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=errors)
    except OSError as error:
        raise DubbingError(
            f"{program[0]} does not start ({error.strerror or error}); check its installation"
        ) from error
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

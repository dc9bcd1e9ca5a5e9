"""Files that commands read and write: names for FFmpeg, outputs that replace only older files of their kind, and
working folders. A process that is killed cannot tidy up; the next one that writes to the same place does it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from av.error import FFmpegError

from engine import locks
from engine.errors import OutputError

TEMPORARY = "personastream-"  # in the names of all temporary files and folders
EMPTY_S = 60.0  # an empty one that is younger may be another process's, not yet locked

_ISO_MEDIA = tuple((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free"))
SIGNATURES = {  # suffix -> (place, bytes) by which a file of this kind is known
    ".avatar": ((0, b"PK\3\4"),),
    ".mp4": _ISO_MEDIA,
    ".m4v": _ISO_MEDIA,
    ".mov": _ISO_MEDIA,
    ".mkv": ((0, b"\x1a\x45\xdf\xa3"),),
    ".png": ((0, b"\x89PNG"),),
}


def ffmpeg_name(path: Path) -> str:
    """`path` for `av.open`: without the protocol, FFmpeg takes a name such as `take:2.mp4` for an address."""
    return f"file:{path}"


def printable(path: Path) -> str:
    """`path` for a terminal: a name may hold bytes that are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_output(
    output: Path, suffixes: tuple[str, ...], inputs: Mapping[str, Path] | None = None, *, option: str = "-o"
) -> None:
    """Check, before minutes of work, that `output` can be written and replaces nothing but an older file of its kind.

    suffixes: of the names it may have, in lower case.  inputs: files that it must not be, by their role.  option: of
    the command, that names it.

    Links are followed. Raises OutputError.
    """
    target = Path(os.path.realpath(output))
    for role, path in (inputs or {}).items():
        if output.exists() and path.exists() and output.samefile(path):
            raise OutputError(f"{output}: is the {role} itself; choose another {option}")
    named = output if target.name == output.name else f"{output} (a link to {target})"
    if target.exists() and not target.is_file():
        raise OutputError(
            f"{named}: cannot be written, as it is {_kind(target)}; choose the name of a file with {option}"
        )
    for path in (output, target):
        if path.suffix.lower() not in suffixes:
            raise OutputError(f"{named}: expected a name ending in {', '.join(suffixes)}; choose another {option}")
    if not target.parent.is_dir():
        raise OutputError(f"{named}: there is no folder {target.parent}; create it or choose another {option}")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise OutputError(f"{named}: cannot be written; choose another place with {option}")
    if target.exists() and not _is_of_kind(target):
        raise OutputError(
            f"{named}: exists and holds something else than its name says, not an older {target.suffix} file; "
            f"move it away or choose another {option}"
        )


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((kind for test, kind in kinds if test(mode)), "a device")


def _is_of_kind(path: Path) -> bool:
    """Whether the file is empty or begins as files with its suffix do; any file, where that is not known."""
    known = SIGNATURES.get(path.suffix.lower())
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:  # not readable: the folder decides whether it may be replaced
        return True
    return not head or known is None or any(head[place:].startswith(mark) for place, mark in known)


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """A temporary name beside `output` (or beside the file that it links to), to be written in the block.

    Renamed to `output` at the end: an older file stays intact until then, and gives its permissions to the new one. An
    exception leaves no file. Raises OutputError where the block or the renaming raises an OSError.
    """
    target = Path(os.path.realpath(output))
    remove_abandoned(target.parent, hidden=True)
    temporary = target.with_name(f".{TEMPORARY}{secrets.token_hex(4)}{target.suffix}")
    try:
        with locks.held(temporary, create=True) as handle:
            try:
                yield temporary
                if target.exists():
                    temporary.chmod(stat.S_IMODE(target.stat().st_mode))
                if handle is not None:
                    os.fsync(handle)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    except (OSError, FFmpegError) as error:
        raise OutputError(
            f"{output}: cannot be written ({_reason(error)}); make room or choose another output"
        ) from error


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for temporary files in the system's place for them, removed at the end of the block.

    Raises OutputError where the block raises an OSError: no room there, most likely.
    """
    try:
        place = Path(tempfile.gettempdir())
        remove_abandoned(place)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=place) as folder, locks.held(Path(folder)):
            yield Path(folder)
    except (OSError, FFmpegError) as error:
        raise OutputError(
            f"{tempfile.tempdir or 'TMPDIR'}: temporary files cannot be written ({_reason(error)}); make room there, "
            "or set TMPDIR to a folder with more"
        ) from error


def _reason(error: OSError | FFmpegError) -> str:
    return error.strerror or str(error)


def remove_abandoned(folder: Path, *, hidden: bool = False) -> None:
    """Remove temporary files and folders that killed processes left in `folder`: ours by name and owner, and unlocked,
    because the system releases a lock when its process ends."""
    if not locks.AVAILABLE:
        return  # nothing tells whether they are in use
    for path in folder.glob(f"{'.' * hidden}{TEMPORARY}*"):
        try:
            with locks.held(path, wait=False, follow=False) as handle:
                facts = os.fstat(cast(int, handle))
                if facts.st_uid != os.getuid() or (_is_empty(path) and time.time() - facts.st_mtime < EMPTY_S):
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # locked: in use


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0

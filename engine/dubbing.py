"""Visual dubbing of a video, as the parent of the process that does it sees it.

Finished parts of an interrupted dub stay in the folder `parts_of`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import engine.child
from engine.child import Listener, Report, Work, ignore, run_child
from engine.errors import DubbingError, SettingError

DUBBING = Work("dubbing", "dubbing a video", "precompute.dubbing", DubbingError)
MAX_MIX_DB = 60.0

Length = Literal["video", "cut", "loop", "bounce", "stretch"]
Speech = str | os.PathLike[str] | Mapping[int, str | os.PathLike[str]]


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
    """The line that tells the child what to do."""
    paths = {"video": video, "speech": speech, "output": output}
    return engine.child.encode_job({**paths, "options": dataclasses.asdict(options)})


def dub_video(
    video: Path,
    speech: Mapping[str, Path],
    output: Path,
    options: DubOptions | None = None,
    listen: Listener = ignore,
    *,
    program: Sequence[str] = DUBBING.program,
) -> Report:
    """Dub `video` in a child process. Returns its report. As `run_child`, with DubbingError for a child that crashed.

    speech: sound files by face number, or by `auto`.
    """
    return run_child(
        DUBBING, video, encode_job(video, speech, output, options or DubOptions()), listen, program=program
    )

"""`precompute SPEAKER.mp4 [-o SPEAKER.avatar]`: make an avatar from one video of a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine.avatar.file import SUFFIX
from engine.cluster import FileTask, joined, run_tasks
from engine.errors import PersonaStreamError, SettingError
from engine.media import FPS
from engine.signals import EXIT_CODE, interruptible
from precompute.enrolment import Enrolled, Enrolment, EnrolmentOptions

STAGE_TEXTS = {
    "face": "Looking for the face",
    "fit": "Fitting the face model",
    "base": "Writing the base video",
    "references": "Choosing lip references",
    "idle": "Painting the resting mouth",
    "report": "Writing report and file",
}


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Make an avatar from one video of a person: 15 to 60 s, one shot, one face from the front, talking."""

    video: tyro.conf.Positional[Path]
    """Video of the speaker, in any format, frame rate or orientation."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO…")] = ()
    """More videos, with --cluster."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write. An older file is replaced only when the new one is complete. Default: beside the video.
    With --cluster a folder, in which the avatars are named after their videos."""
    cluster: bool = False
    """Enrol on the machines of a Ray cluster: the one of this machine, of RAY_ADDRESS, or a new one."""
    options: Annotated[EnrolmentOptions, tyro.conf.arg(name="")] = field(default_factory=EnrolmentOptions)


class _StageBars:
    """One progress bar for each stage, shown when the stage begins."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(STAGE_TEXTS[stage], total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def _summary(enrolled: Enrolled, seconds: float) -> Table:
    manifest = enrolled.manifest
    figures, loop = manifest.summary, manifest.loop
    left, right = figures["yaw_deg"]
    joint = "matched joint" if loop.mode == "wrap" else "there and back"
    rows = [
        ("used", f"{figures['used_s']:.1f} s of {figures['clip_s']:.1f} s, from {figures['used_from_s']:.2f} s"),
        ("picture", f"{manifest.width}x{manifest.height}, face {figures['face_px']} px"),
        ("landmark error", f"{figures['error_px']:.2f} px, lips {figures['lip_error_px']:.2f} px (of 256)"),
        ("head turns", f"{left:.0f}° to {right:.0f}°"),
        ("loop", f"{(loop.stop - loop.start) / FPS:.1f} s, {joint}"),
        ("took", f"{seconds:.1f} s, {seconds / max(1 / FPS, figures['clip_s']):.1f}x the clip's length"),
    ]
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{name}", value)
    return table


def enrol(config: Precompute, console: Console) -> None:
    """Enrol, with progress and a summary on `console`."""
    output = config.output or config.video.with_suffix(SUFFIX)
    start = time.perf_counter()
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        enrolled = Enrolment(config.video, output, config.options, progress=_StageBars(bars)).run()
    console.print(_summary(enrolled, time.perf_counter() - start))
    for remark in enrolled.assessment.remarks:
        console.print(f"[yellow]![/] {escape(remark.text)}", highlight=False)
    console.print(f"[green]✓[/] {escape(str(enrolled.path))}", highlight=False, soft_wrap=True)


def enrol_on_cluster(config: Precompute, console: Console) -> int:
    """Enrol all videos as tasks of a cluster; returns the exit code."""
    videos = (config.video, *config.more)
    outputs = [(config.output or video.parent) / f"{video.stem}{SUFFIX}" for video in videos]
    if len(set(outputs)) < len(outputs):
        raise SettingError("two of the videos have the same name; rename one: the avatars are named after them")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
    tasks = [FileTask((video,), output) for video, output in zip(videos, outputs, strict=True)]
    with joined(None, start=True):
        return run_tasks(partial(_enrol_file, config.options), tasks, console)


def _enrol_file(options: EnrolmentOptions, inputs: list[Path], output: Path) -> None:
    """The task of a cluster."""
    Enrolment(inputs[0], output, options).run()


def run(config: Precompute, console: Console) -> int:
    """Enrol, and print one line for an error. The exit code: 0 written, 2 video, weights or output unusable, 130
    interrupted."""
    try:
        with interruptible():
            if config.cluster:
                return enrol_on_cluster(config, console)
            if config.more:
                raise SettingError(f"{1 + len(config.more)} videos; expected one, or --cluster")
            enrol(config, console)
    except PersonaStreamError as error:
        message = str(error) if str(config.video) in str(error) else f"{config.video}: {error}"
        console.print(f"[red]{type(error).code}[/]: {escape(message)}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written", soft_wrap=True)
        return EXIT_CODE
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments (default: the command line) and run."""
    config = tyro.cli(Precompute, prog="precompute", args=arguments)
    return run(config, Console(stderr=True))

"""`precompute SPEAKER.mp4 [-o SPEAKER.avatar]`: make an avatar from one video of a person."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine.avatar.file import SUFFIX
from engine.errors import PersonaStreamError
from precompute.enroll import Enrolled, EnrollOptions, enroll

STAGES = {
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
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; an older one is replaced only when the new one is complete. Default: beside the video."""
    options: Annotated[EnrollOptions, tyro.conf.arg(name="")] = field(default_factory=EnrollOptions)


class _Stages:
    """One progress bar for each stage, shown when the stage begins."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(STAGES[stage], total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def _summary(made: Enrolled, seconds: float) -> Table:
    quality, loop = made.manifest.summary, made.manifest.loop
    table = Table(show_header=False, box=None, padding=(0, 2))
    low, high = quality["yaw_deg"]
    used = f"{quality['used_s']:.1f} s of {quality['clip_s']:.1f} s, from {quality['used_from_s']:.2f} s"
    joint = "matched joint" if loop.mode == "wrap" else "there and back"
    rows = [
        ("used", used),
        ("picture", f"{made.manifest.width}x{made.manifest.height}, face {quality['face_px']} px"),
        ("landmark error", f"{quality['error_px']:.2f} px, lips {quality['lip_error_px']:.2f} px (of 256)"),
        ("head turns", f"{low:.0f}° to {high:.0f}°"),
        ("loop", f"{(loop.stop - loop.start) / 25:.1f} s, {joint}"),
        ("took", f"{seconds:.1f} s, {seconds / max(0.04, quality['clip_s']):.1f}x the clip's length"),
    ]
    for name, value in rows:
        table.add_row(f"[dim]{name}", value)
    return table


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(config: Precompute, console: Console) -> None:
    """Enrol, with progress on `console`."""
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
        made = enroll(config.video, output, options=config.options, progress=_Stages(bars))
    console.print(_summary(made, time.perf_counter() - start))
    for remark in made.verdict.remarks:
        console.print(f"[yellow]![/] {escape(remark.text)}", highlight=False)
    console.print(f"[green]✓[/] {escape(str(made.path))}", highlight=False, soft_wrap=True)


def main() -> int:
    """0: made; 2: the video, the weights or the output cannot be used; 130: interrupted."""
    config = tyro.cli(Precompute, prog="precompute")
    signal.signal(signal.SIGTERM, _interrupt)  # being stopped cleans up like Ctrl-C does
    try:
        run(config, Console(stderr=True))
    except PersonaStreamError as error:
        message = str(error) if str(config.video) in str(error) else f"{config.video}: {error}"
        Console(stderr=True).print(f"[red]{type(error).code}[/]: {escape(message)}", highlight=False, soft_wrap=True)
        return 2
    except OSError as error:  # a full disk, a folder that went away
        Console(stderr=True).print(f"[red]storage[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; nothing was written", soft_wrap=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

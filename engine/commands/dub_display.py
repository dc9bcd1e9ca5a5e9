"""What `personastream dub` shows of its work: bars and a summary for people, lines of JSON for programs."""

from __future__ import annotations

import json
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from engine.child import Report, WorkEvent, WorkProgress
from engine.errors import MediaError, PersonaStreamError

STAGE_TEXTS = {
    "faces": "Looking for faces",
    "people": "Getting to know them",
    "references": "Choosing lip references",
    "pictures": "Painting mouths",
    "file": "Writing the file",
}
STARTING = "Starting"  # loading the networks takes seconds
SHOWN_PATHS = "surrogateescape", "backslashreplace"  # of names that are no text


class JsonLines:
    """Each event as a line of JSON on the standard output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, event: WorkEvent) -> None:
        self._print(msgspec.to_builtins(event))

    def finish(self, report: Report) -> None:
        self._print({"event": "finished", "report": report})

    def fail(self, error: PersonaStreamError) -> None:
        at_s = error.at_s if isinstance(error, MediaError) else None
        self._print({"event": "error", "code": error.code, "message": str(error), "at_s": at_s})

    def _print(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)


class Display:
    """A bar for each stage and remarks on the standard error, the summary on the standard output."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[left]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        self._tasks[STARTING] = self._bars.add_task(STARTING, total=None, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: WorkEvent) -> None:
        if not isinstance(event, WorkProgress):
            place = "" if event.at_s is None else f" (at {event.at_s:.2f} s)"
            self._bars.print(f"[yellow]![/] {escape(event.text)}{place}", highlight=False)
            return
        if (starting := self._tasks.pop(STARTING, None)) is not None:
            self._bars.remove_task(starting)
        if event.stage not in self._tasks:
            for task in self._tasks.values():
                self._bars.update(task, left="")
            text = STAGE_TEXTS.get(event.stage, event.stage)
            self._tasks[event.stage] = self._bars.add_task(text, total=event.total, left="")
        task, left = self._tasks[event.stage], time_left(event.left_s)
        self._bars.update(task, completed=event.done, total=event.total, left=left)

    def finish(self, report: Report) -> None:
        self._bars.stop()
        name = str(report["output"]).encode(errors=SHOWN_PATHS[0]).decode(errors=SHOWN_PATHS[1])
        print(f"{name}: {report['seconds']:.1f} s of video in {time.monotonic() - self._began_s:.1f} s")
        if "changed" in report:
            Console().print(_summary(report))

    def fail(self, error: PersonaStreamError) -> None:
        """The error is printed by who catches it."""


def time_left(left_s: float | None) -> str:
    """For people, who care for minutes."""
    if left_s is None:
        return ""
    return f"{left_s:.0f} s left" if left_s < 90 else f"about {left_s / 60:.0f} min left"


def _summary(report: Report) -> Table:
    """What was done to the pictures of a video, and why others kept their mouths."""
    reasons: Counter[str] = Counter()
    for shot in report.get("shots", ()):
        reasons.update(shot.get("kept", {}))
    rows = [("changed", f"{report['changed']} of {report['pictures']} pictures")]
    rows += [(f"kept: {reason}", f"{count} pictures") for reason, count in reasons.most_common()]
    if report.get("closed"):
        rows.append(("mouth closed", f"{report['closed']} pictures, where the original spoke and the speech is silent"))
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}", value)
    return table

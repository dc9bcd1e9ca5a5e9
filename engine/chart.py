"""The ramp of a benchmark as a picture."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from engine.errors import OutputError, SettingError
from engine.ramp import Ramp

SUFFIXES = (".png", ".svg", ".pdf")


def draw_ramp(found: Ramp, device: str, path: Path) -> None:
    """Load and p99 lateness against sessions; needs matplotlib. Raises OutputError."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    steps = sorted(found["steps"], key=lambda step: step.sessions)
    sessions = [step.sessions for step in steps]
    late = figure.subplots()
    late.plot(sessions, [step.p99_late_ms for step in steps], "o-", color="tab:blue", label="p99 lateness")
    late.plot(sessions, [step.p50_late_ms for step in steps], "o:", color="tab:blue", label="median lateness")
    late.axhline(found["deadline_ms"], color="tab:red", linewidth=1, label="deadline")
    late.set(xlabel="sessions that speak", ylabel="ms late", ylim=(0, None), title=device)
    if sessions[-1] > 8 * sessions[0]:
        late.set_xscale("log", base=2)
    load = late.twinx()
    load.plot(sessions, [100 * step.load for step in steps], "s--", color="tab:orange", label="load")
    load.set(ylabel="load, % of the device's time", ylim=(0, None))
    late.legend(handles=[*late.get_lines(), *load.get_lines()], loc="upper left")
    late.set_xticks(sessions, [str(count) for count in sessions])
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}); make room or choose another --plot") from error


def check_chart(path: Path) -> None:
    """Minutes of measuring must not end at what is missing. Raises SettingError, OutputError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError("--plot needs matplotlib; pip install 'personastream[plot]'")
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path}: expected a picture's name, ending in {', '.join(SUFFIXES)}; choose another --plot")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; create it or choose another --plot")

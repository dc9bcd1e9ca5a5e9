"""Every benchmark is run the same way from the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import command
from engine.errors import DeviceError

ROOT = Path(__file__).parents[2]
MODULES = ("benchmarks", "benchmarks.backends", "benchmarks.browser", "benchmarks.soak")


@dataclass(frozen=True, kw_only=True)
class Failing:
    """Fail."""

    reason: str

    def run(self) -> None:
        raise DeviceError(self.reason)


def test_an_expected_error_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["failing", "--reason", "no GPU"])
    with pytest.raises(SystemExit) as end:
        command.run(Failing, "failing")
    assert end.value.code == 2 and capsys.readouterr().err == "no GPU\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_has_a_command(module):
    shown = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and f"python -m {module}" in shown.stdout, shown.stderr

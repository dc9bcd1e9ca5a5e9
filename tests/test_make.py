"""`make demo` enrols the video that was named, whatever its name, once, and runs nothing that the name says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = [
    "me and you.mp4",
    'it\'s "me".mp4',
    "a$b $(touch broken).mp4",
    "$(shell touch broken).mp4",
    "`touch broken`.mp4",
    "x; touch broken;.mp4",
    "a & touch broken.mp4",
    "100%.mp4",
    "-o.mp4",
    "take:2.mp4",
    "wörter.mp4",
]
OPTIONS = ["--samples", "demo", "--enrolments.folder", "build/avatars"]
# They print how they were called; `precompute` makes the file that it was asked for.
STAND_IN = '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >> called\n'


@pytest.fixture
def checkout(tmp_path):
    """The Makefile and its script in a project whose environment is ready; its programs only record their call."""
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "tools" / "demo", tmp_path / "tools")
    for name in ("pyproject.toml", "constraints.txt", "tools/setup", "tools/agents", "tools/players", ".venv/.ready"):
        (tmp_path / name).touch()
    for name, more in (("precompute", 'echo made > "$3"\n'), ("personastream", "")):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(STAND_IN + more)
        program.chmod(0o755)
    return tmp_path


def make(checkout, *arguments):
    """The words that the programs were called with."""
    (checkout / "called").unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "demo", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (checkout / "called").read_text().split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_takes_a_video_of_any_name(checkout, name):
    (checkout / name).touch()
    os.utime(checkout / name, (1, 1))
    words = make(checkout, f"SPEAKER={name}", "PORT=8123")
    avatar = words[2]
    assert words[:2] == [str(checkout / name), "--output"] and words[3] == f"--name={name.removesuffix('.mp4')}"
    assert words[4:] == ["serve", avatar, *OPTIONS, "--port", "8123"]
    assert not (checkout / "broken").exists()
    assert make(checkout, f"SPEAKER={name}") == ["serve", avatar, *OPTIONS, "--port", "8080"]  # enrolled


def test_two_videos_of_one_name_are_two_people_and_a_changed_one_is_enrolled_again(checkout):
    avatars = []
    for folder in ("a", "b"):
        (checkout / folder).mkdir()
        (checkout / folder / "me.mp4").touch()
        avatars.append(make(checkout, f"SPEAKER={folder}/me.mp4")[2])
    assert avatars[0] != avatars[1]
    os.utime(avatars[0], (1, 1))
    assert len(make(checkout, "SPEAKER=a/me.mp4")) == 12

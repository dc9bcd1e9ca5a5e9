"""Dubbing a video with the real child process: from Python, from the command line, and the ends of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from engine import dub
from engine.audio import read_speech
from engine.errors import NotAVideoError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def children(pid):
    """The processes that `pid` has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid):
    return os.path.exists(f"/proc/{pid}")


def test_a_video_gets_other_words_and_the_caller_its_progress_and_a_report(short_clip, speech_wav, tmp_path):
    out, page, told = tmp_path / "out.mp4", tmp_path / "report.html", []
    report = dub(short_clip, speech_wav, out, length="cut", report=page, progress=told.append)
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["out.mp4", "report.html"]
    assert report["pictures"] == 50 and report["changed"] > 25 and report["output"] == str(out)
    assert [face["speaks"] for face in report["faces"]] == [["auto"]]
    stages = list(dict.fromkeys(each.stage for each in told))
    assert stages == ["faces", "people", "references", "pictures", "file"] and told[-1].done == told[-1].total
    assert any(each.left_s is not None for each in told)
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50
    assert abs(len(read_speech(out)) / 48_000 - 2.0) < 0.1


def test_a_fault_that_the_child_finds_has_its_type(speech_wav, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(NotAVideoError, match="notes.mp4"):
        dub(tmp_path / "notes.mp4", speech_wav, tmp_path / "out.mp4")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.mp4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_child_of_a_command_that_is_ended_ends_too(short_clip, speech_wav, tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "streaming",
        "dub",
        str(short_clip),
        str(speech_wav),
        "-o",
        str(tmp_path / "out.mp4"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--length", "cut", "--json"], cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "progress"
        (child,) = children(process.pid)
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 130)
        deadline = time.monotonic() + 15
        while lives(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not lives(child)
        if number != signal.SIGKILL:
            assert process.stderr.read() == b"interrupted; nothing was written\n"
    assert not (tmp_path / "out.mp4").exists()

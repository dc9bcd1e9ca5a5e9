"""The benchmark in Chromium runs and yields its figures; what they are is for the machine it is run on to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chromium import PROGRAM
from benchmarks.live_page import marks

ROOT = Path(__file__).parents[2]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.browser", *options]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.browser
@pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")
def test_every_figure_is_there_and_they_fit_together(avatar_path, tmp_path):
    file = tmp_path / "made" / "browser.json"
    order = ["--seconds", "5", "--rounds", "1", "--settle-s", "0", "--quality", "fast", "--json", str(file)]
    done = run(str(avatar_path), *order)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert all(name in done.stdout for name in found)
    assert len(found["first_synced_frame_ms"]) == 2 and len(found["barge_in_ms"]) == 1
    assert min(found["first_synced_frame_ms"]) > 0 and found["watched_s"] > 5
    assert 0 < found["distinct_fps_in_speech"] <= found["rendered_fps_in_speech"] and found["fresh_fps_in_speech"] > 0
    assert found["units"] > 0 <= found["units_late"] and found["decoded_fps"] > 0
    assert {"freezes", "packets_lost", "sound_concealed_percent", "picture_ahead_p99_abs_ms"} <= found.keys()
    assert found["marks"] >= 2 and found["mark_spread_ms"] >= 0
    assert {"mark_picture_ahead_median_ms", "mark_trend_ms_per_hour"} <= found.keys()


@pytest.mark.parametrize(("options", "said"), [
    (("--seconds", "nan"), "--seconds nan --rounds 3"),
    (("--rounds", "0"), "expected at least 2.0, 1 and 0"),
    ((), "apt-get install chromium"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(options, said):
    done = run("none.avatar", *options, PATH="/nowhere")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_flash_is_paired_with_the_nearest_beep():
    at_ms = np.arange(0.0, 10_000, 10)
    lit = (at_ms % 2_000 >= 1_000) & (at_ms % 2_000 < 1_040)
    loud = ((at_ms - 70) % 2_000 >= 1_000) & ((at_ms - 70) % 2_000 < 1_020)
    frames = np.stack([at_ms, at_ms + 5, at_ms, np.where(lit, 200, 10)], axis=1)
    sound = np.stack([at_ms, np.where(loud, 0.3, 0.0)], axis=1)
    assert marks(frames, sound).tolist() == [[at + 5, 65] for at in range(1_000, 10_000, 2_000)]
    assert marks(frames, sound * 0).shape == (0, 2)

"""The bench drives the real engine and its figures fit together."""

from __future__ import annotations

import json
import wave

import pytest

from engine.bench import bench
from engine.errors import SettingError


def test_the_figures_are_complete_and_consistent(avatar_path):
    figures = bench(avatar_path, None, 2.0)
    assert {"fps", "first_frame_ms", "stage_ms"} <= figures.keys()
    assert {"speech", "geometry", "picture"} <= figures["stage_ms"].keys()
    assert all(0 < median <= worst for median, worst in figures["stage_ms"].values())
    assert figures["fps"] > 0 and figures["sessions_at_25_fps"] == int(figures["fps"] // 25)
    assert figures["algorithmic_ms"] == 280
    least = sum(figures["stage_ms"][stage][0] for stage in ("speech", "geometry", "picture"))
    assert figures["first_frame_ms"] > 0.3 * least
    assert json.loads(json.dumps(figures))["fps"] == figures["fps"]


def test_speech_shorter_than_asked_for_is_repeated(avatar_path, speech_wav, tmp_path):
    short = tmp_path / "short.wav"
    with wave.open(str(speech_wav)) as source, wave.open(str(short), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getframerate()))
    assert bench(avatar_path, short, 2.0)["fps"] > 0


@pytest.mark.parametrize("seconds", [0, 0.2, -1, 1e9, float("nan"), float("inf")])
def test_a_time_that_measures_nothing_is_refused(avatar_path, seconds):
    with pytest.raises(SettingError, match="expected 2 to 3600"):
        bench(avatar_path, None, seconds)

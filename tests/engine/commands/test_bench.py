"""The bench drives the real engine and its figures fit together."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import wave

import cv2
import numpy as np
import pytest
import torch

from engine.audio import read_speech
from engine.backends.cpu import CpuBackend
from engine.backends.select import describe
from engine.commands.bench import Bench, bench, speech_of
from engine.commands.capacity import SILENT, Ramp, Step, check_chart, draw_ramp, print_ramp, ramp
from engine.config import LEVELS, ComputeConfig
from engine.errors import OutputError, SettingError

ON_THE_CPU = ComputeConfig(device="cpu")


@pytest.mark.slow
def test_the_command_prints_figures_that_are_complete_and_consistent(avatar_path, capsys, tmp_path):
    trace = tmp_path / "trace.json"
    assert Bench(avatar=avatar_path, seconds=2.0, json=True, trace=trace, compute=ON_THE_CPU).run() == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["workers"] >= 1 and figures["level"] == "best" and figures["live"]["new_fps"] > 0
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"lips", "idle", "new picture"} <= names and names & set(LEVELS)
    assert {"fps", "first_frame_ms", "stage_ms"} <= figures.keys()
    assert {"speech", "geometry", "picture"} <= figures["stage_ms"].keys()
    assert all(0 < median <= worst for median, worst in figures["stage_ms"].values())
    assert figures["fps"] > 0 and figures["sessions_at_25_fps"] == int(figures["fps"] // 25)
    assert figures["algorithmic_ms"] == 280
    assert figures["device"] == describe(torch.device("cpu")) and not figures["fallback"]
    # What the process gave back before may be used again, so that less is added here than in a process of its own.
    assert figures["session_mb"] < figures["memory_mb"] and figures["avatar_mb"] < figures["memory_mb"]
    assert figures["device_mb"] == figures["device_avatar_mb"] == 0
    assert figures["first_frame_ms"] > 1, "speech, geometry and a picture cannot be had for less"


@pytest.mark.slow
@pytest.mark.parametrize("level", ["best-half", "fast", "fast-half"])
def test_every_level_can_be_measured(avatar_path, level):
    figures = bench(avatar_path, None, 2.0, CpuBackend.embedded(quality=level))
    assert figures["level"] == level and figures["fps"] > 0 and figures["first_frame_ms"] > 1


def test_speech_shorter_than_asked_for_is_repeated(speech_wav, tmp_path):
    short = tmp_path / "short.wav"
    with wave.open(str(speech_wav)) as source, wave.open(str(short), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getframerate()))
    once, pcm = read_speech(short), speech_of(short, 2.5)
    assert len(pcm) == 120_000 and np.array_equal(pcm, np.resize(once, 120_000)) and len(once) < 60_000


@pytest.mark.slow
def test_the_table_shows_all_stages(avatar_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert Bench(avatar=avatar_path, seconds=2.0, compute=ON_THE_CPU).run() == 0
    shown = capsys.readouterr().out
    for word in ("speech", "geometry", "picture", "new pictures a second", "first frame"):
        assert word in shown


@pytest.mark.parametrize("seconds", [0, 0.2, -1, 1e9, float("nan"), float("inf")])
def test_a_time_that_measures_nothing_is_refused(avatar_path, seconds):
    with pytest.raises(SettingError, match="expected 2 to 3600"):
        bench(avatar_path, None, seconds)


STEPS = [
    Step(
        sessions=n, talking=n, load=0.3 * n, p50_late_ms=late, p99_late_ms=3 * late, late_ticks=0, cores=1, stage_ms={}
    )
    for n, late in ((1, 2.0), (4, 30.0), (2, 4.0))
]


CAPACITY = Ramp(sessions=2, mixed_sessions=8, deadline_ms=40.0, batch_ms={}, steps=STEPS, mixed=[], silent=STEPS[:1])


def test_the_tables_show_sessions_that_talk_and_silent_ones(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_ramp(CAPACITY)
    shown = capsys.readouterr().out
    for words in (
        "all talk",
        "a fifth talks",
        "silent",
        "p99 late ms",
        "late ticks",
        "cores",
        "2 sessions that talk, or 8",
    ):
        assert words in shown


def test_the_ramp_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    drawn = tmp_path / "ramp.png"
    draw_ramp(CAPACITY, "CPU, 2 cores", drawn)
    picture = cv2.imread(str(drawn))
    assert picture is not None and picture.std() > 10
    with pytest.raises(OutputError, match="cannot be written"):
        draw_ramp(CAPACITY, "CPU, 2 cores", tmp_path / "nowhere" / "ramp.png")


def test_what_a_drawing_lacks_is_said_before_anything_is_measured(monkeypatch, tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        check_chart(tmp_path / "nowhere" / "ramp.png")
    for name in ("ramp", "ramp.nonsense"):
        with pytest.raises(OutputError, match=r"ending in \.png, \.svg, \.pdf"):
            check_chart(tmp_path / name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'personastream\[plot\]'"):
        check_chart(tmp_path / "ramp.png")


@pytest.mark.slow
def test_the_ramp_ends_where_pictures_come_too_late(avatar_path):
    capacity = asyncio.run(ramp(avatar_path, speech_of(None, 2.0)))
    steps = {step.sessions: step for step in capacity["steps"]}
    assert capacity["sessions"] == 0 or steps[capacity["sessions"]].p99_late_ms < capacity["deadline_ms"] == 40
    assert steps[capacity["sessions"] + 1].p99_late_ms >= 40, "one more is too many"
    assert {"lips", "idle", *LEVELS} == capacity["batch_ms"].keys() and all(
        1 in b for b in capacity["batch_ms"].values()
    )
    for step in capacity["mixed"]:
        assert step.talking == -(-step.sessions // 5) and step.load <= step.talking * steps[1].load * 1.001
    assert capacity["mixed_sessions"] < min(s.sessions for s in capacity["mixed"] if s.p99_late_ms >= 40)
    for step, sessions in zip(capacity["silent"], SILENT, strict=True):
        assert (step.sessions, step.talking, step.load) == (sessions, 0, 0) and step.stage_ms.keys() == {"idle"}
        assert step.cores > 0 and 0 <= step.p50_late_ms <= step.p99_late_ms
    for step in steps.values():
        assert step.talking == step.sessions
        assert 0 <= step.p50_late_ms <= step.p99_late_ms and {"speech", "picture"} <= step.stage_ms.keys()
        assert 0 < step.load <= step.sessions * steps[1].load * 1.001, "batches are made only where they cost less"

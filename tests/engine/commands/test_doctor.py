"""The doctor finds what works, and says what to do about what does not."""

from __future__ import annotations

import re

import pytest

from engine.backends.select import choose, describe
from engine.commands.doctor import Doctor, examine
from engine.models import weights
from engine.models.speech import SpeechConfig, SpeechEncoder


def by_name():
    return {finding.name: finding for finding in examine()}


def test_a_whole_installation_is_well():
    findings = by_name()
    assert all(finding.ok for finding in findings.values()), findings
    assert {"python", "av", "aiortc", "opencv", "enrolment", "networks", "device", "latency"} <= findings.keys()
    assert "280 ms" in findings["latency"].detail
    choice = choose("auto")
    assert describe(choice.device) in findings["device"].detail and choice.reason in findings["device"].detail
    for network in ("face_model", "speech", "geometry", "renderer"):
        assert network in findings["networks"].detail


def test_the_command_shows_every_finding_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert Doctor().run() == 0
    shown = capsys.readouterr().out
    assert all(finding.name in shown for finding in examine())


def test_the_latency_is_that_of_the_weights_themselves(monkeypatch, tmp_path):
    for path in weights.ASSETS.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    encoder = SpeechEncoder(SpeechConfig(step_frames=6))
    weights.save(encoder, tmp_path / "speech.safetensors", facts={})
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    latency = by_name()["latency"]
    assert not latency.ok and "360 ms" in latency.detail


@pytest.mark.parametrize("damage", ["missing", "damaged"])
@pytest.mark.parametrize("network", ["speech", "face_model"])
def test_broken_weights_are_found_and_the_remedy_is_told(monkeypatch, tmp_path, network, damage):
    for path in weights.ASSETS.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / f"{network}.safetensors"
    broken.unlink() if damage == "missing" else broken.write_bytes(b"nonsense")
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    networks = by_name()["networks"]
    assert not networks.ok and "python -m training" in networks.remedy


def test_a_library_that_is_not_there_is_found(monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    absent = {"aiortc", "mediapipe"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a))
    aiortc, enrolment = by_name()["aiortc"], by_name()["enrolment"]
    assert not aiortc.ok and aiortc.remedy == "pip install personastream"
    assert enrolment.ok and "personastream[enroll]" in enrolment.remedy  # avatars play without it
    monkeypatch.setenv("COLUMNS", "300")
    assert Doctor().run() == 1
    assert "personastream[enroll]" in capsys.readouterr().out  # brackets are no markup


def test_a_second_build_of_opencv_is_found_and_the_remedy_keeps_the_headless_one(monkeypatch, tmp_path):
    for name, release in (("opencv-contrib-python", "4.11.0.86"), ("opencv-python-headless", "4.12.0.88")):
        folder = tmp_path / f"{name.replace('-', '_')}-{release}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    monkeypatch.syspath_prepend(tmp_path)
    opencv = by_name()["opencv"]
    assert "opencv-contrib-python 4.11.0.86" in opencv.detail
    assert "uninstall -y opencv-contrib-python" in opencv.remedy
    assert re.search(r"--no-deps opencv-python-headless==4[\d.]+$", opencv.remedy)

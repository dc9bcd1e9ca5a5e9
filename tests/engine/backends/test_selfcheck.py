"""A GPU is used in the modes that a check of this very card has shown to work; the check itself is tried on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from on_tensors import OnTensors

from engine.backends import selfcheck
from engine.backends.cpu import CpuBackend
from engine.backends.cuda import cpu_parts
from engine.backends.onnx import psnr_db
from engine.backends.selfcheck import Verdict, check_apart, outputs, remember, verdict
from engine.models import weights

GPU = torch.device("cuda", 0)
EAGER = {"mode": "eager", "reason": "pictures are 58 dB from the CPU's"}
GRAPHS = {"mode": "graphs", "reason": "recorded graphs are 90 dB from eager networks"}


@pytest.fixture
def card(monkeypatch):
    """card(name): the machine's GPU."""

    def name(text):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: text)

    name("GPU 0")
    return name


@pytest.fixture
def child(tmp_path):
    """child(script): a Python whose check is this shell script."""

    def make(script):
        path = tmp_path / f"python{len(list(tmp_path.iterdir()))}"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        return str(path)

    return make


def says(*steps):
    return "".join(f"cat <<'EOF'\n{json.dumps(step)}\nEOF\n" for step in steps)


def test_the_last_mode_that_passed_is_the_verdict(child):
    assert check_apart(GPU, child(says(EAGER, GRAPHS))) == Verdict(**GRAPHS)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("kill -SEGV $$", "it ended with -11"),
        ("echo CUDA error >&2; exit 1", "the check of recorded graphs failed, CUDA error"),
    ],
)
def test_a_crash_of_recorded_graphs_leaves_eager_networks(child, end, why):
    found = check_apart(GPU, child(says(EAGER) + end))
    assert found.mode == "eager" and EAGER["reason"] in found.reason
    assert "the check of recorded graphs failed" in found.reason and why in found.reason


def test_a_check_that_hangs_is_ended(child):
    found = check_apart(GPU, child(says(EAGER) + "exec sleep 60"), within_s=1.0)
    assert found.mode == "eager" and "it took more than 1 s" in found.reason


def test_a_card_whose_pictures_are_not_the_cpus_has_no_mode(child):
    found = check_apart(GPU, child("echo outputs are 12.0 dB apart >&2; exit 1"))
    assert found.mode is None and "the check of its pictures failed" in found.reason and "12.0 dB" in found.reason


def test_a_verdict_is_remembered_for_this_card_driver_and_weights(card, child, tmp_path, monkeypatch):
    folder = tmp_path / "verdicts"
    assert verdict(GPU, folder, child(says(EAGER, GRAPHS))) == Verdict(**GRAPHS)
    broken = child("exit 1")
    assert verdict(GPU, folder, broken) == Verdict(**GRAPHS), "no second check"
    remember(GPU, Verdict("tensorrt", "it is 1.4 times as fast"), folder)
    assert verdict(GPU, folder, broken).mode == "tensorrt"
    card("another card")
    assert verdict(GPU, folder, broken).mode is None
    assert verdict(GPU, folder, child(says(EAGER))).mode == "eager", "a failure may pass and is not remembered"
    card("GPU 0")
    monkeypatch.setattr(weights, "fingerprint", lambda path: "other weights")
    assert verdict(GPU, folder, broken).mode is None


def test_a_verdict_that_cannot_be_read_or_written_is_found_again(card, child, tmp_path, caplog):
    folder = tmp_path / "verdicts"
    verdict(GPU, folder, child(says(EAGER)))
    (file,) = folder.iterdir()
    file.write_text("{half of")
    assert verdict(GPU, folder, child(says(EAGER, GRAPHS))) == Verdict(**GRAPHS)
    assert verdict(GPU, file, child(says(EAGER))).mode == "eager", "a file where the folder should be"
    assert "is not remembered" in caplog.text


@pytest.mark.slow
def test_the_check_compares_pictures_which_are_the_cpus_or_not():
    _, windows, _ = cpu_parts()
    reference = CpuBackend.embedded(windows=windows, bfloat16=False, int8=False)
    backend = OnTensors(reference, fine=True)
    expected, found = outputs(reference), outputs(backend)
    assert all(psnr_db(one, other) > 50 for one, other in zip(found, expected, strict=True))
    renderer = backend.batch_painter.renderer
    backend.batch_painter.renderer = lambda *inputs: (renderer(*inputs)[0] * 0.9,)
    dark = outputs(backend)
    assert min(psnr_db(one, other) for one, other in zip(dark, expected, strict=True)) < selfcheck.TO_CPU_DB


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_check_ends_with_the_reason_where_there_is_no_gpu():
    command = [sys.executable, "-m", "engine.backends.selfcheck", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "finds 0" in done.stderr and not done.stdout

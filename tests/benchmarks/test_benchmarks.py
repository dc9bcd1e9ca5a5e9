"""The rivals have the sizes of their classes; the benchmark runs here and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure import gflop
from benchmarks.rivals import ConvolutionalLips, LatentDecoder, LatentUNet

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("kind", "million", "billion", "shape"), [
    # Published: 36 M at 96 px with one level less.
    (ConvolutionalLips, (30, 70), (15, 60), (1, 3, 256, 256)),
    # Published: 860 M with a context of 768; a sixth of a TFLOP at 32 x 32.
    (LatentUNet, (820, 860), (150, 200), (1, 4, 32, 32)),
    # Published: 49.5 M.
    (LatentDecoder, (49, 50), (550, 700), (1, 3, 256, 256)),
])  # fmt: skip
def test_rivals_have_the_size_of_their_class(kind, million, billion, shape):
    with torch.device("meta"):
        network, example = kind().eval(), kind.example(1)
        assert network(*example)[0].shape == shape
    assert million[0] < sum(parameter.numel() for parameter in network.parameters()) / 1e6 < million[1]
    assert billion[0] < gflop(network, example) < billion[1]


def test_arithmetic_is_counted_in_multiplications_and_additions():
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    assert gflop(convolution, (torch.zeros(2, 3, 8, 8),)) == pytest.approx(2 * 2 * 8 * 8 * 5 * 3 * 9 / 1e9)


def test_benchmark_measures_everything_and_says_what_it_was(tmp_path):
    order = [sys.executable, "-m", "benchmarks", "--small", "--batch", "2", "--seconds", "0.01", "--json"]
    done = subprocess.run([*order, str(tmp_path / "made" / "b.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stdout and "rivals made small" in done.stdout
    found = json.loads((tmp_path / "made" / "b.json").read_text())
    assert found["small"] and "random weights" in found["note"]
    rivals = ["class of Wav2Lip", "class of MuseTalk: UNet", "class of MuseTalk: decoder"]
    assert [f["network"] for f in found["figures"]] == ["our renderer", *rivals]
    for figure in found["figures"]:
        assert figure["batch"] == 2 and figure["runs"] >= 1
        assert figure["frames_per_second"] == pytest.approx(1000 / figure["ms_per_frame"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_said():
    order = [sys.executable, "-m", "benchmarks", "--device", "cuda"]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "CUDA device 0 was asked for" in done.stderr and "Traceback" not in done.stderr

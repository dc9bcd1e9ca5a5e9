"""The rivals have the sizes of their classes, and the benchmark beside them measures every network."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.__main__ import Benchmark
from benchmarks.measure import gflop
from benchmarks.rivals import ConvolutionalLips, LatentDecoder, LatentUNet
from engine.errors import DeviceError


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


@pytest.mark.slow
def test_every_network_is_measured_and_the_table_says_what_the_figures_mean(tmp_path, capsys):
    file = tmp_path / "made" / "figures.json"
    Benchmark(small=True, batch=(2,), seconds=0.01, json=file).run()
    printed = capsys.readouterr().out
    assert "random weights" in printed and "rivals made small" in printed
    report = json.loads(file.read_text())
    assert report["small"] and "random weights" in report["note"]
    rivals = ["class of Wav2Lip", "class of MuseTalk: UNet", "class of MuseTalk: decoder"]
    assert [figure["network"] for figure in report["figures"]] == ["our renderer", *rivals]
    for figure in report["figures"]:
        assert figure["batch"] == 2 and figure["runs"] >= 1
        assert figure["frames_per_second"] == pytest.approx(1000 / figure["ms_per_frame"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_a_typed_error():
    with pytest.raises(DeviceError, match="CUDA device 0 was asked for"):
        Benchmark(device="cuda").run()

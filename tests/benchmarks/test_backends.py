"""The benchmark of the backends, as far as a CPU has them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.backends import Backends, Report, Speed, fastest, matmul_flop, open_mode, table
from benchmarks.measure import gflop
from engine.backends import graphs
from engine.backends.cpu import CpuBackend
from engine.errors import DeviceError

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_cpu_is_measured_as_a_gpu_would_be(avatar_path, tmp_path, capsys):
    file = tmp_path / "made" / "backends.json"
    Backends(avatar=avatar_path, device="cpu", batch=(1, 3), seconds=0.01, sessions=(1,), speech_s=2, json=file).run()
    assert "a product of matrices reaches" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert " cores, " in figures["device"] and figures["precision"] == "float32" and figures["matmul_tflops"] > 0
    (report,) = figures["modes"]
    assert report["mode"] == "eager" and not report["failure"] and report["p99_late_ms"]["1"] >= 0
    assert [speed["batch"] for speed in report["speeds"]] == [1, 3]
    for speed in report["speeds"]:
        assert speed["network_fps"] == pytest.approx(1000 * speed["batch"] / speed["ms_per_batch"])
        assert speed["share_of_ceiling"] == pytest.approx(speed["tflops"] / figures["matmul_tflops"])
        assert speed["picture_fps"] > 0 and speed["share_of_ceiling"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_a_typed_error(avatar_path):
    with pytest.raises(DeviceError, match="finds no CUDA device"):
        Backends(avatar=avatar_path, device="cuda").run()


def test_the_ceiling_counts_like_the_networks_arithmetic():
    product = torch.nn.Linear(64, 64, bias=False)
    assert gflop(product, (torch.zeros(64, 64),)) == pytest.approx(matmul_flop(64) / 1e9)


def test_a_cpu_has_the_reference_backend():
    backend, runner = open_mode("graphs", CPU, "float32")
    assert backend.quality == "fast", "as on a GPU"
    assert type(backend) is CpuBackend and isinstance(runner, graphs.RendererGraph)


SPEED = Speed(8, 1.5, 5333.0, 4.2, 0.1, 1700.0)


def test_a_mode_that_is_not_available_is_in_the_table_with_the_reason():
    reports = [Report("graphs", (SPEED, SPEED), {64: 31.0}, 900.0), Report("tensorrt", failure="not installed")]
    cells = [list(column.cells) for column in table(reports, "title").columns]
    assert cells[0] == ["graphs", "", "tensorrt"] and cells[-1] == ["900", "", "not installed"]
    assert cells[-2] == ["64: 31", "", ""]


@pytest.mark.parametrize(("fps", "mode"), [(1700.0, "graphs"), (1750.0, "graphs"), (2000.0, "tensorrt")])
def test_tensorrt_is_chosen_where_it_is_clearly_faster(fps, mode):
    reports = [Report("graphs", (SPEED,)), Report("tensorrt", (replace(SPEED, picture_fps=fps),))]
    assert fastest(reports).mode == mode
    assert fastest(reports[:1]) is None, "only one was measured"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_mode_of_a_gpu_is_measured(avatar_path, tmp_path):
    file = tmp_path / "backends.json"
    settings = {"modes": ("eager", "graphs"), "sessions": (1, 2), "speech_s": 2}
    Backends(avatar=avatar_path, device="cuda", batch=(1, 8), seconds=0.1, json=file, **settings).run()
    for report in json.loads(file.read_text())["modes"]:
        assert not report["failure"] and len(report["p99_late_ms"]) == len(report["speeds"]) == 2

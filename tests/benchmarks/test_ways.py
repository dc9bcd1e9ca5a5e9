"""The ways to run the renderer are measured here too, as far as a CPU has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ways import Report, Speed, matmul_tflops, open_way, table
from engine.backends import graphs
from engine.backends.cpu import CpuBackend

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_the_cpu_is_measured_as_a_gpu_would_be(avatar_path, tmp_path):
    target = tmp_path / "made" / "ways.json"
    order = [sys.executable, "-m", "benchmarks.ways", str(avatar_path), "--device", "cpu", "--batch", "1", "3"]
    order += ["--seconds", "0.01", "--speech-s", "0", "--json", str(target)]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["device"].startswith("CPU, ") and found["precision"] == "float32" and found["matmul_tflops"] > 0
    (report,) = found["ways"]
    assert report["way"] == "eager" and not report["failure"] and report["sessions"] is None
    assert [speed["batch"] for speed in report["speeds"]] == [1, 3]
    for speed in report["speeds"]:
        assert speed["network_fps"] == pytest.approx(1000 * speed["batch"] / speed["ms_per_batch"])
        assert speed["share_of_ceiling"] == pytest.approx(speed["tflops"] / found["matmul_tflops"])
        assert speed["picture_fps"] > 0 and 0 < speed["share_of_ceiling"] < 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_said(avatar_path):
    order = [sys.executable, "-m", "benchmarks.ways", str(avatar_path), "--device", "cuda"]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "finds no CUDA device" in done.stderr and "Traceback" not in done.stderr


def test_the_ceiling_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr("benchmarks.ways.repeated", lambda run, device, seconds: [0.5])
    assert matmul_tflops(CPU, "float32", 1.0) == pytest.approx(2 * 1024**3 / 0.5 / 1e12)


def test_a_cpu_has_the_reference_backend():
    backend, runner = open_way("graphs", CPU, "float32")
    assert backend.quality == "fast", "as on a GPU"
    assert type(backend) is CpuBackend and isinstance(runner, graphs.RendererGraph)


def test_a_way_that_cannot_be_had_is_in_the_table_with_its_reason():
    speed = Speed(8, 1.5, 5333.0, 4.2, 0.1, 1700.0)
    made = table([Report("graphs", (speed, speed), 64, 31.0), Report("tensorrt", failure="not installed")], "title")
    cells = [list(column.cells) for column in made.columns]
    assert cells[0] == ["graphs", "", "tensorrt"] and cells[-1] == ["64", "", "not installed"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_way_of_a_gpu_is_measured(avatar_path, tmp_path):
    target = tmp_path / "ways.json"
    order = [sys.executable, "-m", "benchmarks.ways", str(avatar_path), "--device", "cuda", "--batch", "1", "8"]
    order += ["--ways", "eager", "graphs", "--seconds", "0.1", "--speech-s", "2", "--json", str(target)]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for report in json.loads(target.read_text())["ways"]:
        assert not report["failure"] and report["sessions"] >= 1 and len(report["speeds"]) == 2

"""The exported networks answer as torch does, at sizes other than those of the export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.backends import graphs
from engine.backends import onnx as exporter
from engine.commands import export
from engine.errors import ExportError, OutputError, WeightsError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What `personastream export` did: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("onnx") / "made"
    order = [sys.executable, "-m", "streaming", "export", "--out", str(folder)]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def files(command):
    """Of every network its graph in float32 and its ONNX file, of the embedded weights."""
    return {name: (graphs.load(name, "float32"), command[0] / f"{name}.onnx") for name in graphs.NETWORKS}


def test_command_writes_the_files_and_says_how_alike_they_are(command):
    folder, printed = command
    assert {path.name for path in folder.iterdir()} == {"speech.onnx", "geometry.onnx", "renderer.onnx"}
    rows = {
        name: line.split("│") for name in graphs.NETWORKS for line in printed.splitlines() if f"{name}.onnx" in line
    }
    for name in graphs.NETWORKS:
        size_mb, psnr_db = float(rows[name][2]), float(rows[name][3])
        assert size_mb == pytest.approx((folder / f"{name}.onnx").stat().st_size / 1e6, abs=0.06)
        assert psnr_db > 100


@pytest.mark.parametrize("name", graphs.NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_runtime_gives_what_torch_gives_at_any_batch(files, name, batch):
    graph, path = files[name]
    assert exporter.parity(path, graph, {**graphs.USUAL, "batch": batch}) > 100


@pytest.mark.parametrize("name", graphs.NETWORKS)
def test_every_free_axis_is_free_in_the_file(files, name):
    graph, path = files[name]
    stored = {given.name: given.type.tensor_type.shape.dim for given in onnx.load(path).graph.input}
    assert {name: tuple(d.dim_param or d.dim_value for d in dims) for name, dims in stored.items()} == graph.inputs


def test_renderer_takes_other_windows_and_fewer_references_than_it_was_exported_with(files):
    graph, path = files["renderer"]
    other = {"batch": 2, "rows": 20, "columns": 31, "lip_rows": 9, "lip_columns": 17, "lips": 4, "faces": 1}
    assert exporter.parity(path, graph, other) > 100


@pytest.mark.parametrize("name", graphs.NETWORKS)
def test_parity_tells_other_weights(files, name):
    changed = graphs.load(name, "float32")
    for parameter in changed.parameters():
        parameter.mul_(1.1)
    assert exporter.parity(files[name][1], changed, graphs.USUAL) < export.ALIKE_DB


def test_half_precision_is_alike(tmp_path):
    reference = graphs.load("renderer", "float32")
    exporter.write(graphs.load("renderer", "float16"), tmp_path / "renderer.onnx")
    assert export.ALIKE_DB < exporter.parity(tmp_path / "renderer.onnx", reference, graphs.USUAL) < 120


def test_missing_extra_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnxscript .*pip install 'personastream\[export\]'"):
        next(export.export_all(tmp_path))
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_and_missing_weights_are_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        exporter.write(graphs.load("geometry", "float32"), tmp_path / "file" / "geometry.onnx")
    with pytest.raises(WeightsError, match="no such weights"):
        graphs.load("geometry", "float32", tmp_path / "none.safetensors")


class Undecided(graphs.Graph):
    """Looks into its input to know what to do: nothing that a graph can hold."""

    name, outputs = "undecided", ("y",)

    def __init__(self):
        super().__init__(nn.Identity(), "float32")
        self.inputs = {"x": ("batch", 4)}

    def forward(self, x):
        return (x if x.sum() > 0 else -x,)

    def example(self, free):
        return (torch.ones(graphs.sizes(self.inputs["x"], free)),)


def test_network_that_cannot_be_a_graph_is_a_typed_error(tmp_path):
    with pytest.raises(ExportError, match="undecided: not exportable by torch"):
        exporter.write(Undecided(), tmp_path / "undecided.onnx")
    assert not list(tmp_path.iterdir())

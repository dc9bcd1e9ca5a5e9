"""The networks as ONNX files, and their PSNR against torch."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from engine.backends import graphs
from engine.backends.graphs import Graph
from engine.errors import ExportError, OutputError
from engine.files import check_output, replaced


def write(graph: Graph, path: Path) -> None:
    """Write `graph` as ONNX with dynamic sizes for its free axes, and replace an older file.

    Raises ExportError where torch cannot export it, OutputError where `path` cannot be written.
    """
    extra("onnx")
    opset = extra("onnxscript").opset18
    with _writing(path):  # fails before the export, which takes long
        check_output(path, (".onnx",), option="folder")
    named = {name: Dim(name, min=span.least, max=span.most) for name, span in graphs.SPANS.items()}
    shapes = tuple(
        {i: graphs.times(axis) * named[graphs.free_axis(axis)] for i, axis in enumerate(axes) if isinstance(axis, str)}
        for axes in graph.inputs.values()
    )
    with _quiet():
        try:
            program = torch.onnx.export(
                graph.eval(),
                graph.example(graphs.USUAL),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                custom_translation_table={torch.ops.aten._fft_r2c.default: partial(_fourier, opset)},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"{graph.name}: not exportable by torch {torch.__version__} ({error!s:.300})") from error
    assert program is not None
    with replaced(path) as temporary:
        program.save(temporary)


def _fourier(opset: Any, signal: Any, dim: Sequence[int], normalization: int, onesided: bool) -> Any:
    """A real Fourier transform over the last axis as a product with a matrix, since TensorRT has no transform. Returns
    real and imaginary parts on a further axis at the end, which is how the exporter represents complex numbers."""
    samples, rank = int(signal.shape[-1]), len(signal.shape)
    assert list(dim) == [rank - 1] and normalization == 0 and onesided, "the transform has other arguments"
    turns = np.outer(np.arange(samples), np.arange(samples // 2 + 1)) / samples * 2 * np.pi
    waves = np.stack([np.cos(turns), -np.sin(turns)], -1).astype(np.float32).reshape(samples, -1)
    product = opset.MatMul(signal, opset.Constant(value=extra("onnx_ir").tensor(waves)))
    return opset.Reshape(product, opset.Constant(value_ints=[0] * (rank - 1) + [samples // 2 + 1, 2]))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); give another folder") from error


def parity(path: Path, reference: Graph, free: Mapping[str, int]) -> float:
    """The lowest PSNR in dB of the outputs of ONNX Runtime, with the file at `path`, against those of `reference`.
    `free`: the sizes of the free axes. Raises ExportError where ONNX Runtime is not installed."""
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # hides warnings about constants that it cannot fold
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = reference.example(free)
    arrays = {name: tensor.numpy() for name, tensor in zip(reference.inputs, inputs, strict=True)}
    with torch.inference_mode():
        expected = reference(*inputs)
    outputs = session.run(list(reference.outputs), arrays)
    return min(psnr_db(torch.from_numpy(o), e) for o, e in zip(outputs, expected, strict=True))


def psnr_db(output: torch.Tensor, expected: torch.Tensor) -> float:
    """PSNR of `output` over the range of `expected`; infinite where they are equal, minus infinity for NaN."""
    span, error = (expected.max() - expected.min()).item(), (output - expected).square().mean().sqrt().item()
    if math.isnan(error):
        return -math.inf
    return 20 * math.log10(span / error) if error else math.inf


def extra(name: str) -> ModuleType:
    """A module of the extra `export`. Raises ExportError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'personastream[export]'"
        raise ExportError(f"{name} is needed for the export and cannot be imported ({error}); {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporter's own warnings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

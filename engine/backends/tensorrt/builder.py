"""Builds TensorRT plans in a child process, so that a crash of the builder does not end the server.

`tensorrt` and `tensorrt_rtx` have the same interface. RTX builds for GeForce and RTX GPUs (compute capability 7.5, 8.x
and 12.x), also on machines without one; `tensorrt` builds for the GPU of this machine.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.backends import graphs
from engine.backends.graphs import Precision
from engine.backends.onnx import write as write_onnx
from engine.errors import PersonaStreamError, PlanError

Capability = tuple[int, int]
Progress = Callable[[str], None]

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
BUILD_S = 1800.0


def library(capability: Capability) -> ModuleType:
    """The TensorRT for GPUs of this compute capability. Raises PlanError where it is not installed."""
    wanted = ["tensorrt_rtx", "tensorrt"] if capability in RTX_CAPABILITIES else ["tensorrt"]
    for name in wanted:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    remedy = f"pip install {'personastream[tensorrt]' if len(wanted) > 1 else 'tensorrt'!r}"
    raise PlanError(f"compute capability {dotted(capability)} needs {' or '.join(wanted)}; {remedy}")


def build_apart(
    network: str,
    path: Path,
    precision: Precision,
    capability: Capability,
    progress: Progress,
    *,
    within_s: float = BUILD_S,
    python: str = sys.executable,
) -> bytes:
    """Builds in a child process and passes its output to `progress`, line by line. Where it fails or takes longer than
    `within_s`, PlanError has its last lines."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "built.plan"
        arguments = [network, str(path), precision, dotted(capability), str(target)]
        command = [python, "-m", "engine.backends.tensorrt.builder", *arguments]
        lines: list[str] = []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, text=True, errors="replace", **pipes) as child:
            watchdog = threading.Timer(within_s, child.kill)
            watchdog.start()
            assert child.stdout is not None
            for line in child.stdout:
                lines = [*lines[-2:], " ".join(line.split())]
                progress(lines[-1])
            code = child.wait()
            watchdog.cancel()
        if code != 0:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise PlanError(f"{network}: the builder {how}; its last lines: {' / '.join(lines):.500}")
        return target.read_bytes()


def build(network: str, path: Path, precision: Precision, capability: Capability, progress: Progress) -> bytes:
    """Build the plan in this process. Raises PlanError, ExportError, WeightsError."""
    trt = library(capability)
    graph = graphs.load(network, precision, path)
    errors: list[str] = []
    log = _listener(trt, errors)
    builder = trt.Builder(log)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / f"{network}.onnx"
        progress(f"{network}: exporting")
        write_onnx(graph, onnx)
        if not parser.parse(onnx.read_bytes()):
            reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise PlanError(f"{network}: {trt.__name__} {trt.__version__} cannot read its graph ({reasons:.300})")
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, network, progress)
    if trt.__name__ == "tensorrt_rtx":  # `tensorrt` always builds for the GPU of this machine
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM{}{}".format(*capability)), 0)
    profile = builder.create_optimization_profile()
    for name, axes in graph.inputs.items():
        spans = graphs.SPANS.items()
        extremes = ({n: getattr(span, extreme) for n, span in spans} for extreme in ("least", "usual", "most"))
        profile.set_shape(name, *(graphs.sizes(axes, free) for free in extremes))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise PlanError(f"{network}: {trt.__name__} {trt.__version__} builds no plan ({'; '.join(errors):.300})")
    return bytes(plan)


def _listener(trt: ModuleType, errors: list[str]) -> Any:
    """A TensorRT logger that collects errors in `errors`."""

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(message)

    return Listener()


def _monitor(trt: ModuleType, network: str, progress: Progress) -> Any:
    """A TensorRT monitor that reports the steps of the outermost phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                progress(f"{network}: {phase} {step + 1}/{self.steps[phase]}")
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def dotted(capability: Capability) -> str:
    """The usual notation: 8.9 for (8, 9)."""
    return "{}.{}".format(*capability)


def main() -> None:
    """The child process: NETWORK WEIGHTS PRECISION CAPABILITY TARGET."""
    network, path, precision, dotted, target = sys.argv[1:]
    major, minor = map(int, dotted.split("."))
    try:
        plan = build(network, Path(path), precision, (major, minor), lambda line: print(line, flush=True))  # type: ignore[arg-type]
    except PersonaStreamError as error:
        sys.exit(str(error))
    Path(target).write_bytes(plan)


if __name__ == "__main__":
    main()

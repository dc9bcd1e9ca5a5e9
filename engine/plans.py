"""TensorRT plans: kept on disk, and built in a process of their own, so that a builder that crashes takes nobody along.

A plan is a cache of the weights that it was made of. Its key names all that it depends on; a file that is damaged or
made for something else counts as missing.

`tensorrt` and `tensorrt_rtx` have the same interface. RTX builds for GeForce and RTX GPUs (compute capability 7.5, 8.x
and 12.x), without one at hand too; the other one builds for the GPU at hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engine import export, graphs, weights
from engine.errors import PersonaStreamError, PlanError
from engine.graphs import Precision

log = logging.getLogger(__name__)

Capability = tuple[int, int]
Progress = Callable[[str], None]

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
BUILD_S = 1800.0
DIGEST_BYTES = 32


def library(capability: Capability) -> ModuleType:
    """The TensorRT for GPUs of this compute capability. Raises PlanError where it is not installed."""
    wanted = ["tensorrt_rtx", "tensorrt"] if capability in RTX_CAPABILITIES else ["tensorrt"]
    for name in wanted:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    remedy = f"pip install {'personastream[tensorrt]' if len(wanted) > 1 else 'tensorrt'!r}"
    raise PlanError(f"compute capability {_dotted(capability)} needs {' or '.join(wanted)}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """All that a plan depends on. `weights` and `code`: fingerprints of the weights file and of our network code."""

    network: str
    weights: str
    code: str
    spans: str
    precision: Precision
    builder: str
    driver: str
    capability: str

    @classmethod
    def of(cls, network: str, path: Path, precision: Precision, capability: Capability, driver: str) -> PlanKey:
        """The key of the network with the weights at `path` on such a GPU. Raises PlanError, WeightsError."""
        builder = library(capability)
        sources = [*sorted((Path(__file__).parent / "models").glob("*.py")), Path(graphs.__file__)]
        return cls(
            network=network,
            weights=weights.fingerprint(path),
            code=hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16],
            spans=json.dumps({name: dataclasses.astuple(span) for name, span in graphs.SPANS.items()}),
            precision=precision,
            builder=f"{builder.__name__} {builder.__version__}",
            driver=driver,
            capability=_dotted(capability),
        )

    @property
    def file_name(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.network}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.plan"


class PlanCache:
    """Plans in a folder, each behind its digest. Processes may share one."""

    def __init__(self, folder: Path | None = None):
        """`folder`: by default personastream/plans in the user's cache."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = folder or home / "personastream" / "plans"

    def find(self, key: PlanKey) -> bytes | None:
        """The plan, or None where there is none that is whole."""
        path = self.folder / key.file_name
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, plan = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if hashlib.sha256(plan).digest() == digest:
            return plan
        log.warning("%s: a damaged plan, it is built again", path)
        return None

    def store(self, key: PlanKey, plan: bytes) -> Path:
        """Write under a temporary name first; returns the file's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / key.file_name
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
            file.write(hashlib.sha256(plan).digest() + plan)
        return Path(file.name).rename(path)


def plan_for(
    network: str,
    path: Path,
    *,
    precision: Precision,
    capability: Capability,
    driver: str,
    cache: PlanCache,
    progress: Progress,
) -> bytes:
    """The plan of a network with the weights at `path`, from the cache or built. Raises PlanError, WeightsError."""
    key = PlanKey.of(network, path, precision, capability, driver)
    plan = cache.find(key)
    if plan is None:
        plan = build_apart(network, path, precision, capability, progress)
        cache.store(key, plan)
    return plan


def build_apart(
    network: str,
    path: Path,
    precision: Precision,
    capability: Capability,
    progress: Progress,
    *,
    within_s: float = BUILD_S,
) -> bytes:
    """Build in a process of its own, whose lines go to `progress`. Raises PlanError with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "made.plan"
        order = [network, str(path), precision, _dotted(capability), str(target)]
        command = [sys.executable, "-m", "engine.plans", *order]
        said: list[str] = []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, text=True, errors="replace", **pipes) as child:
            watchdog = threading.Timer(within_s, child.kill)
            watchdog.start()
            assert child.stdout is not None
            for line in child.stdout:
                said = [*said[-2:], " ".join(line.split())]
                progress(said[-1])
            code = child.wait()
            watchdog.cancel()
        if code != 0:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise PlanError(f"{network}: the builder {how}; its last words: {' / '.join(said):.500}")
        return target.read_bytes()


def build(network: str, path: Path, precision: Precision, capability: Capability, progress: Progress) -> bytes:
    """Build the plan here and now. Raises PlanError, ExportError, WeightsError."""
    trt = library(capability)
    graph = graphs.load(network, precision, path)
    complaints: list[str] = []
    log = _listener(trt, complaints)
    builder = trt.Builder(log)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / f"{network}.onnx"
        progress(f"{network}: exporting")
        export.write(graph, onnx)
        if not parser.parse(onnx.read_bytes()):
            reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise PlanError(f"{network}: {trt.__name__} {trt.__version__} cannot read its graph ({reasons:.300})")
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, network, progress)
    if trt.__name__ == "tensorrt_rtx":  # the other one knows only the GPU at hand
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
        raise PlanError(f"{network}: {trt.__name__} {trt.__version__} builds no plan ({'; '.join(complaints):.300})")
    return bytes(plan)


def _listener(trt: ModuleType, complaints: list[str]) -> Any:
    """A logger of TensorRT that keeps what is an error."""

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                complaints.append(message)

    return Listener()


def _monitor(trt: ModuleType, network: str, progress: Progress) -> Any:
    """A monitor of TensorRT that tells the steps of the outermost phases."""

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


def _dotted(capability: Capability) -> str:
    return "{}.{}".format(*capability)


def main() -> None:
    """The builder's process: NETWORK WEIGHTS PRECISION CAPABILITY TARGET."""
    network, path, precision, dotted, target = sys.argv[1:]
    major, minor = map(int, dotted.split("."))
    try:
        plan = build(network, Path(path), precision, (major, minor), lambda line: print(line, flush=True))  # type: ignore[arg-type]
    except PersonaStreamError as error:
        sys.exit(str(error))
    Path(target).write_bytes(plan)


if __name__ == "__main__":
    main()

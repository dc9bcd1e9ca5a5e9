"""The networks through TensorRT on a CUDA device. Falls back to PyTorch and logs why."""

from __future__ import annotations

import logging
import subprocess

import torch
from torch import Tensor

from engine.backends import graphs
from engine.backends.cuda import CudaBackend, cpu_parts, torch_runners
from engine.backends.graphs import Precision
from engine.backends.onnx import psnr_db
from engine.backends.tensorrt.builder import Capability, Progress, library
from engine.backends.tensorrt.cache import PlanCache, plan_for
from engine.config import GpuMode, QualityOption
from engine.errors import ExportError, PlanError
from engine.models import weights
from engine.paint.gpu.batch import Runner

log = logging.getLogger(__name__)

TRUSTED_DB = 40.0  # a plan whose outputs are further from torch in float32 is not used


class PlanRunner:
    """A plan as a runner, on the current device. Raises PlanError where it does not load."""

    def __init__(self, network: str, plan: bytes, capability: Capability):
        trt = library(capability)
        self._network, self._trt = network, trt
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # must live as long as the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        context = None if self._engine is None else self._engine.create_execution_context()
        if context is None:
            raise PlanError(f"{network}: {trt.__name__} {trt.__version__} does not load its plan; free GPU memory")
        self._context = context
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Queue the work on the current stream. Raises PlanError for sizes outside `graphs.SPANS`."""
        dense = [tensor.contiguous() for tensor in inputs]
        for name, tensor in zip(self._inputs, dense, strict=True):
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise PlanError(
                    f"{self._network}: {name} {tuple(tensor.shape)} is outside the sizes that its plan was built for"
                )
            self._context.set_tensor_address(name, tensor.data_ptr())
        outputs = [
            torch.empty(tuple(self._context.get_tensor_shape(name)), device=dense[0].device) for name in self._outputs
        ]
        for name, tensor in zip(self._outputs, outputs, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise PlanError(f"{self._network}: its plan does not run; see `personastream doctor`")
        return tuple(outputs)


def plan_runners(
    device: torch.device,
    precision: Precision = "float16",
    cache: PlanCache | None = None,
    progress: Progress = log.info,
) -> dict[str, Runner]:
    """Plans of the weights that ship with the engine; builds those that the cache lacks, which takes minutes. Fine
    pictures, for which there is no plan, are rendered by PyTorch's recorded graphs.

    Every plan's outputs are compared with torch's first. Raises PlanError, ExportError, WeightsError.
    """
    capability, driver = torch.cuda.get_device_capability(device), driver_version()
    cache, plans = cache or PlanCache(), dict[str, Runner]()
    for name in graphs.NETWORKS:
        plan = plan_for(
            name,
            weights.default_path(name),
            precision=precision,
            capability=capability,
            driver=driver,
            cache=cache,
            progress=progress,
        )
        with torch.cuda.device(device):
            plans[name] = PlanRunner(name, plan, capability)
            _compare(name, plans[name], device)
    coarse, any_size = plans["renderer"], torch_runners(device, "graphs", precision, ["renderer"])["renderer"]

    def renderer(pncc: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        *_, face_pixels, _ = inputs
        fine = face_pixels.shape[-1] > pncc.shape[-1]
        return (any_size if fine else coarse)(pncc, *inputs)

    return plans | {"renderer": renderer}


def open_backend(
    device: torch.device,
    mode: GpuMode,
    quality: QualityOption = "auto",
    precision: Precision = "float16",
    cache: PlanCache | None = None,
    progress: Progress = log.info,
) -> CudaBackend:
    """The networks on this device in that mode; where TensorRT cannot be used, through recorded graphs: the reason is
    logged as an error and is the backend's `fallback`. Raises WeightsError, DeviceError."""
    if mode != "tensorrt":
        return CudaBackend(torch_runners(device, mode, precision), *cpu_parts(), device, quality=quality)
    try:
        runners, fallback = plan_runners(device, precision, cache, progress), ""
    except (PlanError, ExportError) as error:
        log.error("TensorRT is not used, PyTorch runs the networks: %s", error)
        runners, fallback = torch_runners(device, "graphs", precision), str(error)
    return CudaBackend(runners, *cpu_parts(), device, fallback, quality)


def driver_version() -> str:
    """The version of the driver, such as 580.65.06. Raises PlanError where nvidia-smi is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PlanError(
            f"nvidia-smi does not tell the driver's version ({error}); install the driver's tools"
        ) from error
    return version.split("\n")[0].strip()  # one for each GPU, all the same


@torch.inference_mode()
def _compare(name: str, runner: Runner, device: torch.device) -> None:
    """Raise PlanError for a runner whose outputs differ from torch's."""
    reference = graphs.load(name, "float32")
    inputs = reference.example({**graphs.USUAL, "batch": 2})
    outputs = runner(*(tensor.to(device) for tensor in inputs))
    pairs = zip(outputs, reference(*inputs), strict=True)
    worst = min(psnr_db(output.cpu(), expected) for output, expected in pairs)
    if worst < TRUSTED_DB:
        raise PlanError(f"{name}: its plan's outputs are {worst:.1f} dB from torch's, expected at least {TRUSTED_DB:g}")

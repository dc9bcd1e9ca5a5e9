"""The choice of a device from the request and the GPUs that work, and its backend."""

from __future__ import annotations

import importlib.util
import logging
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import torch

from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend, cores, native_bfloat16
from engine.config import SINGLE, GpuModeOption, QualityOption
from engine.errors import DeviceError, PlanError, SettingError

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
# CUDA and its libraries take about one GiB, recorded graphs at most another (`cuda.GRAPH_BYTES`).
NEEDED_BYTES = 2 << 30


@dataclass(frozen=True)
class Choice:
    """`reason`: why this device was chosen. `fallback`: why it is not a GPU of this machine, else empty."""

    device: torch.device
    reason: str
    fallback: str = ""


def choose(requested: str) -> Choice:
    """The device for `auto` (the first GPU that works and has room, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises SettingError for another word, DeviceError for a GPU that is not there or cannot be used.
    """
    wanted = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", requested)
    if wanted is None:
        raise SettingError(f"--device {requested}; expected auto, cpu, cuda or cuda:N")
    if requested == "cpu":
        return Choice(CPU, "it was requested")
    if requested != "auto":
        index = int(wanted[1] or 0)
        fault = absence() if index >= _count() else unfit(index)
        if fault:
            raise DeviceError(
                f"--device {requested}: {fault}; choose `--device auto` or `cpu`, or see `personastream doctor`"
            )
        return Choice(torch.device("cuda", index), "it was requested")
    faults = []
    for index in range(_count()):
        fault = unfit(index)
        if not fault:
            return Choice(torch.device("cuda", index), "the first GPU that works and has room")
        faults.append(fault)
    driver_without_torch = not faults and shutil.which("nvidia-smi") is not None
    reason = "; ".join(faults) or absence()
    return Choice(CPU, reason, reason if faults or driver_without_torch else "")


def backend_for(requested: str, quality: QualityOption = "auto", gpu_mode: GpuModeOption = "auto") -> Backend:
    """The fastest backend on the device of `choose`, with the embedded weights, at `quality`; `auto` leaves the
    choice to the times that an engine measures.

    Where a GPU that `auto` chose cannot run the networks, the CPU is used, and the backend's `fallback` says why.
    Raises the errors of `choose`, SettingError for a level that a GPU does not have, DeviceError, WeightsError.
    """
    choice = choose(requested)
    if choice.device.type == "cuda":
        if quality in SINGLE:
            raise SettingError(f"--quality {quality}: a GPU has best and fast alone; choose one, or `--device cpu`")
        try:
            backend = _on_gpu(choice, quality, gpu_mode)
        except DeviceError as error:
            if requested != "auto":
                raise
            choice = Choice(CPU, str(error), str(error))
        else:
            backend.spare = partial(_on_cpu, quality=quality) if requested == "auto" else None
            return backend
    return _on_cpu(choice.fallback, quality, choice.reason)


def _on_cpu(fallback: str, quality: QualityOption, reason: str = "") -> Backend:
    level = logging.WARNING if fallback else logging.INFO
    log.log(level, "device %s: %s", describe(CPU), reason or fallback)
    return CpuBackend.embedded(fallback=fallback, quality=quality)


def _on_gpu(choice: Choice, quality: QualityOption, gpu_mode: GpuModeOption) -> Backend:
    """The backend on a GPU, warmed up. Raises DeviceError for a GPU that cannot run the networks, which `unfit` does
    not show."""
    from engine.backends import selfcheck  # here, so that a machine without a GPU does not load them
    from engine.backends.tensorrt import runner

    device = choice.device
    torch.set_num_threads(1)  # the CPU has little work then, and video encoders need the other cores
    cv2.setNumThreads(1)
    try:
        found = selfcheck.verdict(device) if gpu_mode == "auto" else selfcheck.Verdict(gpu_mode, "it was requested")
        if found.mode is None:
            raise DeviceError(f"{describe(device)}: {found.reason}; choose `--device cpu`, or update the driver")
        backend = runner.open_backend(device, found.mode, quality)
        selfcheck.outputs(backend)
    except (RuntimeError, PlanError) as error:  # torch's errors of memory, drivers and libraries
        raise DeviceError(
            f"{describe(device)} does not take the networks ({first_line(error)}); choose `--device cpu` or another, "
            "or see `personastream doctor`"
        ) from error
    log.info("device %s: %s; mode %s: %s", describe(device), choice.reason, found.mode, found.reason)
    return backend


def describe(device: torch.device) -> str:
    """The name of a device, to show: of a CPU the processor, its usable cores and the instruction set."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{_processor()}, {cores()} cores, {_instructions()}"


@cache
def _processor() -> str:
    """The model name of the processor."""
    facts = Path("/proc/cpuinfo")  # Linux; elsewhere the interpreter may know
    names = re.findall(r"^model name\s*:\s*(.+)$", facts.read_text(), re.MULTILINE) if facts.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _instructions() -> str:
    """The instruction set that torch uses."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability} with bfloat16" if native_bfloat16() else capability


def absence() -> str:
    """Why no usable GPU was found, in words."""
    devices = [describe(torch.device("cuda", index)) for index in range(_count())]
    if devices:
        return f"torch finds {', '.join(devices)} alone"
    hint = "" if shutil.which("nvidia-smi") is None else ", though there is a driver: install a torch built for CUDA"
    return f"torch {torch.__version__} finds no CUDA device{hint}"


def unfit(index: int) -> str:
    """Why the CUDA device of that index cannot be used, else empty."""
    return next(_faults(torch.device("cuda", index)), "")


def _faults(device: torch.device) -> Iterator[str]:
    name = str(device)
    try:
        name = describe(device)  # the first call that needs a working driver
        float(torch.ones(1, device=device).sum())  # fails where torch has no kernels for it
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        yield f"{name} does not run torch {torch.__version__} ({first_line(error)})"
        return
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        yield f"{name} needs cuda.core for its rasteriser; pip install 'personastream[cuda]'"
    if free < NEEDED_BYTES:
        gib = [round(n / 2**30, 1) for n in (free, total, NEEDED_BYTES)]
        yield f"{name} has {gib[0]} of {gib[1]} GiB free, expected {gib[2]}"


def first_line(error: Exception) -> str:
    """The message without torch's advice on debugging and its stack."""
    return str(error).partition("\n")[0]


def _count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0

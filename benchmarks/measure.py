"""Time and arithmetic of networks, measured in the same way on the same device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.backends.cuda import CudaGraphs, GraphMemory

WARM_RUNS = 3


@dataclass(frozen=True)
class Figure:
    """`gflop_per_frame` counts multiplications and additions; `ms_per_frame` is the median of `runs` batches."""

    network: str
    what: str
    million_parameters: float
    gflop_per_frame: float
    batch: int
    runs: int
    ms_per_frame: float
    frames_per_second: float


def gflop(network: nn.Module, example: tuple[Tensor, ...]) -> float:
    """GFLOP of one run on tensors like `example`, counted without computing; `network` is moved to the meta device."""
    inputs = [tensor.to("meta") for tensor in example]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(*inputs)
    return counter.get_total_flops() / 1e9


def seconds_per_run(
    network: nn.Module, example: tuple[Tensor, ...], device: torch.device, seconds: float
) -> list[float]:
    """Run repeatedly for `seconds`, on a GPU as a CUDA graph, with inputs on the device: the duration of each run."""
    inputs = [tensor.to(device) for tensor in example]
    run: Callable[..., object] = CudaGraphs(network, GraphMemory(device)) if device.type == "cuda" else network
    return repeated(lambda: run(*inputs), device, seconds)


def repeated(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Call repeatedly for `seconds`, after a warm-up: the duration of each call in s, until `device` is idle."""
    taken: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_RUNS):
            run()
        wait(device)
        until = time.perf_counter() + seconds
        while not taken or time.perf_counter() < until:
            began = time.perf_counter()
            run()
            wait(device)
            taken.append(time.perf_counter() - began)
    return taken


def wait(device: torch.device) -> None:
    """Block until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    name: str,
    what: str,
    make: Callable[[], nn.Module],
    example: Callable[[int], tuple[Tensor, ...]],
    batch: int,
    device: torch.device,
    seconds: float,
) -> Figure:
    """Build the network twice: to count on the meta device, and to run on `device`."""
    arithmetic = gflop(make(), example(1))
    network = make().eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    taken = seconds_per_run(network, example(batch), device, seconds)
    per_frame_s = statistics.median(taken) / batch
    return Figure(
        network=name,
        what=what,
        million_parameters=sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        gflop_per_frame=arithmetic,
        batch=batch,
        runs=len(taken),
        ms_per_frame=per_frame_s * 1000,
        frames_per_second=1 / per_frame_s,
    )

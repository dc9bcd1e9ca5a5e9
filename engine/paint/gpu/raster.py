"""The rasteriser on a GPU: `raster.cu`, compiled by NVRTC for the device, on tensors of PyTorch. The
counterpart of `engine.paint.raster` for batches."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.errors import DeviceError

SOURCE = Path(__file__).parent / "raster.cu"
KERNELS = ("locate", "spread")
TILE_PX = (32, 4)  # a warp draws a row, so that its stores coalesce


class Rasteriser(Protocol):
    """Draws batches of meshes of one topology; tensors are on its device."""

    def locate(self, vertices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """`paint.raster.locate`: vertices [B, V, 3] float32 in pixels to triangle [B, H, W] int32 (-1: none) and
        weights [B, H, W, 3]."""

    def spread(self, triangle: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """`paint.raster.spread`: values [B, V, K] float32 at the vertices to [B, K, H, W], 0 without a triangle."""

    def codes(self, triangle: Tensor, weights: Tensor, codes: Tensor) -> Tensor:
        """`paint.raster.spread_codes`: the PNCC [B, 3, H, W] of the triangles' codes [F, 3, 3]."""


def compile_kernels(capability: tuple[int, int], source: Path = SOURCE) -> Any:
    """The kernels as a cubin (`cuda.core.ObjectCode`) for GPUs of this compute capability; needs no GPU.

    Raises DeviceError where the extra `cuda` is missing or NVRTC fails.
    """
    try:
        core = importlib.import_module("cuda.core")
        options = core.ProgramOptions(arch="sm_{}{}".format(*capability), std="c++17", fma=False)
        return core.Program(source.read_text(), "c++", options).compile("cubin")
    except ImportError as error:
        remedy = "pip install 'personastream[cuda]'"
        raise DeviceError(f"cuda.core is needed for the GPU's rasteriser ({error}); {remedy}") from error
    except Exception as error:  # cuda.core does not export the types of its errors
        raise DeviceError(
            f"{source.name} cannot be compiled for sm_{capability[0]}{capability[1]} ({error})"
        ) from error


class CudaRasteriser:
    """`Rasteriser` of meshes with triangles [F, 3] on a CUDA device; work is queued on PyTorch's current stream.

    Raises DeviceError where the kernels cannot be compiled or the driver rejects them.
    """

    def __init__(self, triangles: Tensor, device: torch.device):
        compiled = compile_kernels(torch.cuda.get_device_capability(device))
        self._core = importlib.import_module("cuda.core")  # is installed: it has compiled the kernels
        with torch.cuda.device(device):
            self._index = torch.cuda.current_device()
            try:
                self._core.Device(self._index).set_current()
                self._locate, self._spread = (compiled.get_kernel(name) for name in KERNELS)
            except Exception as error:  # of cuda.core
                raise DeviceError(
                    f"{device}: its driver does not take the kernels of {SOURCE.name} ({error}); update the driver"
                ) from error
        self._triangles = triangles.to(device, torch.int32).contiguous()

    def locate(self, vertices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """`Rasteriser.locate`."""
        batch, count, _ = vertices.shape
        vertices = vertices.contiguous()
        triangle = torch.empty(batch, height, width, dtype=torch.int32, device=vertices.device)
        weights = torch.empty(batch, height, width, 3, device=vertices.device)
        numbers = (count, len(self._triangles), height, width)
        self._launch(self._locate, triangle.shape, vertices, self._triangles, *numbers, triangle, weights)
        return triangle, weights

    def spread(self, triangle: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """`Rasteriser.spread`."""
        return self._mix(triangle, weights, self._triangles, values)

    def codes(self, triangle: Tensor, weights: Tensor, codes: Tensor) -> Tensor:
        """`Rasteriser.codes`."""
        corners = torch.arange(3 * len(codes), dtype=torch.int32, device=triangle.device).reshape(-1, 3)
        return self._mix(triangle, weights, corners, codes.reshape(1, -1, 3).expand(len(triangle), -1, -1))

    def _mix(self, triangle: Tensor, weights: Tensor, triangles: Tensor, values: Tensor) -> Tensor:
        values = values.contiguous()
        channels = values.shape[2]
        out = torch.empty(len(triangle), channels, *triangle.shape[1:], device=triangle.device)
        numbers = (len(triangles), values.shape[1], channels, *triangle.shape[1:])
        self._launch(self._spread, triangle.shape, triangle, weights, triangles, values, *numbers, out)
        return out

    def _launch(self, kernel: Any, pixels: tuple[int, ...], *arguments: Tensor | int) -> None:
        """One thread for each of pixels [B, H, W]; whole numbers are passed as C ints."""
        batch, height, width = pixels
        across, down = TILE_PX
        self._core.Device(self._index).set_current()  # in this thread too, which may not be the one that compiled
        config = self._core.LaunchConfig(grid=(-(-width // across), -(-height // down), batch), block=(across, down, 1))
        stream = self._core.Stream.from_handle(torch.cuda.current_stream(self._triangles.device).cuda_stream)
        passed = [a.data_ptr() if isinstance(a, Tensor) else np.int32(a) for a in arguments]
        self._core.launch(stream, config, kernel, *passed)

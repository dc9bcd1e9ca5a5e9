"""Copies between the CPU and a device through page-locked memory that is reused; plain copies where the device is the
CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

ALIGNED_BYTES = 16


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work in the block is queued on `stream`; None: the device is the CPU."""
    with torch.inference_mode(), nullcontext() if stream is None else torch.cuda.stream(stream):
        yield


class Pinned:
    """A growing piece of page-locked memory, viewed as tensors of any shape."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def room(self, count: int) -> Tensor:
        """The first `count` bytes."""
        if count > len(self._bytes):
            # A power of two, so that a slightly larger request allocates nothing.
            self._bytes = torch.empty(1 << (count - 1).bit_length(), dtype=torch.uint8, pin_memory=True)
        return self._bytes[:count]

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised tensor of the same type and shape in this memory."""
        return self.room(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)


class Upload:
    """Copies sets of arrays to the device, one set at a time, on the current stream."""

    def __init__(self, device: torch.device):
        self._device, self._pinned = device, Pinned()
        self._sent = None if device.type == "cpu" else torch.cuda.Event()

    def __call__(self, *arrays: np.ndarray) -> list[Tensor]:
        """The arrays as tensors on the device; the arrays may change at once. Waits for the previous set."""
        starts = np.cumsum([0, *(-(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES for array in arrays)])
        if self._sent is None:
            packed = torch.empty(int(starts[-1]), dtype=torch.uint8)
        else:
            self._sent.synchronize()
            packed = self._pinned.room(int(starts[-1]))
        views = [slice(start, start + array.nbytes) for start, array in zip(starts.tolist(), arrays, strict=False)]
        for view, array in zip(views, arrays, strict=True):
            packed.numpy()[view] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sent = packed.to(self._device, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        kinds = [torch.from_numpy(array[:0]).dtype for array in arrays]
        rows = zip(views, kinds, arrays, strict=True)
        return [sent[view].view(kind).view(array.shape) for view, kind, array in rows]


class Download:
    """Copies a tensor to the CPU: `start`, other work, `wait`."""

    def __init__(self, device: torch.device):
        self._pinned, self._result = Pinned(), torch.empty(0)
        self._arrived = None if device.type == "cpu" else torch.cuda.Event()

    def start(self, tensor: Tensor) -> None:
        """Queue the copy on the current stream."""
        self._result = tensor
        if self._arrived is not None:
            self._result = self._pinned.like(tensor).copy_(tensor, non_blocking=True)
            self._arrived.record()

    def wait(self) -> np.ndarray:
        """The downloaded tensor; the next `start` overwrites it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._result.numpy()

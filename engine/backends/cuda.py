"""The networks on a CUDA device: upload, computation and download of batches overlap on three streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends import graphs
from engine.backends.graphs import Graph, Precision
from engine.config import Level, Quality
from engine.errors import DeviceError
from engine.models import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.morphable import MorphableModel
from engine.models.renderer import RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import BatchPainter, Runner
from engine.paint.gpu.painter import GpuPainter
from engine.paint.gpu.raster import CudaRasteriser
from engine.paint.gpu.transfer import Pinned
from engine.paint.painter import FittedVideo
from engine.paint.shape import triangles

Mode = Literal["eager", "compile", "graphs"]

CHUNK = 16  # rows of a batch that are copied together; larger batches overlap copies with computing
CAPTURES = 64  # CUDA graphs kept of one network; each holds its own inputs and outputs


def cuda_device(index: int = 0) -> torch.device:
    """The CUDA device of that index. Raises DeviceError where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise DeviceError(
            f"CUDA device {index} was asked for, torch {torch.__version__} finds {count}; "
            "run on the CPU, or see `personastream doctor`"
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class _Capture:
    """A recorded graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaGraphs:
    """Records an eager runner's work once for each batch size (powers of two) and window size, then replays it.
    captures: the number of recorded sizes; further ones run eagerly.
    """

    def __init__(self, runner: Runner, captures: int = CAPTURES):
        self._runner, self._most = runner, captures
        self._captures: dict[tuple[tuple[int, ...], ...], _Capture] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        padded = 1 << (rows - 1).bit_length()
        sizes = tuple((padded, *tensor.shape[1:]) for tensor in inputs)
        if sizes not in self._captures:
            if len(self._captures) == self._most:
                return self._runner(*inputs)
            self._captures[sizes] = self._capture(inputs, padded)
        capture = self._captures[sizes]
        for static, tensor in zip(capture.inputs, inputs, strict=True):
            static[:rows].copy_(tensor)  # the rows behind keep valid values of an earlier call
        capture.graph.replay()
        return tuple(static[:rows].clone() for static in capture.outputs)  # the next replay overwrites them

    def _capture(self, inputs: tuple[Tensor, ...], rows: int) -> _Capture:
        static = [torch.cat([t, t[-1:].expand(rows - len(t), *t.shape[1:])]) for t in inputs]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and allocate, which must not happen while capturing
                self._runner(*static)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: encoders do.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = list(self._runner(*static))
        return _Capture(graph, static, outputs)


class _Slot:
    """One of two chunks in progress: page-locked inputs and outputs, and the event of finished outputs."""

    def __init__(self, inputs: int, outputs: int):
        self.inputs = [Pinned() for _ in range(inputs)]
        self.outputs = [Pinned() for _ in range(outputs)]
        self.arrived = torch.cuda.Event()
        self.results: list[Tensor] = []

    def take(self) -> list[Tensor]:
        """The outputs, copied out of the page-locked memory; empty where no chunk was in progress."""
        if not self.results:
            return []
        self.arrived.synchronize()
        taken, self.results = [result.clone() for result in self.results], []
        return taken


class ChunkedRunner:
    """Runs batches from the CPU through a runner on the device.

    A batch is cut into chunks. While one is computed, the next one is copied to the device and the last one back, each
    through one of two page-locked buffers. Not thread-safe: only the inference thread uses it.
    """

    def __init__(self, runner: Runner, device: torch.device, inputs: int, outputs: int, chunk: int = CHUNK):
        self._runner, self._device, self._chunk = runner, device, chunk
        with torch.cuda.device(device):
            self._up, self._compute, self._down = (torch.cuda.Stream() for _ in range(3))
            self._slots = [_Slot(inputs, outputs) for _ in range(2)]

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """inputs [B, ...] on the CPU, B >= 1, to outputs [B, ...] on the CPU."""
        arrived: list[list[Tensor]] = []
        with torch.cuda.device(self._device):
            for slot in self._slots:
                slot.take()  # outputs left by a call that failed half-way
            for i, chunk in enumerate(zip(*(tensor.split(self._chunk) for tensor in inputs), strict=True)):
                slot = self._slots[i % 2]
                arrived.append(slot.take())  # two chunks ago; its inputs are free too by then
                self._send(slot, chunk)
            last = i % 2
            arrived += [self._slots[1 - last].take(), self._slots[last].take()]
        return tuple(torch.cat(parts) for parts in zip(*(part for part in arrived if part), strict=True))

    def _send(self, slot: _Slot, chunk: tuple[Tensor, ...]) -> None:
        """Queue all work for one chunk; only the copy into the page-locked inputs happens at once."""
        with torch.cuda.stream(self._up):
            inputs = [
                pinned.like(tensor).copy_(tensor).to(self._device, non_blocking=True)
                for pinned, tensor in zip(slot.inputs, chunk, strict=True)
            ]
        self._compute.wait_stream(self._up)
        with torch.cuda.stream(self._compute):
            for tensor in inputs:
                tensor.record_stream(self._compute)
            outputs = self._runner(*inputs)
        self._down.wait_stream(self._compute)
        with torch.cuda.stream(self._down):
            for tensor, pinned in zip(outputs, slot.outputs, strict=True):
                tensor.record_stream(self._down)
                slot.results.append(pinned.like(tensor).copy_(tensor, non_blocking=True))
            slot.arrived.record()


class CudaBackend:
    """`Backend` on a CUDA device, with one runner for each network, for one thread.

    fallback: why these are not the requested runners, else empty. Raises DeviceError where the rasteriser
    does not run on the device.
    """

    workers = 1

    def __init__(
        self,
        runners: dict[str, Runner],
        speech: SpeechConfig,
        geometry: GeometryGenerator,
        device: torch.device,
        fallback: str = "",
    ):
        self.device, self.fallback, self.speech_config = device, fallback, speech
        self.quality: Quality = "fast"  # the batch painter takes 256 px crops alone
        self.levels: tuple[Level, ...] = ("fast",)
        model = load_face_model()
        rasteriser = CudaRasteriser(torch.from_numpy(triangles(model)), device)
        self.batch_painter = BatchPainter(device, rasteriser, runners["renderer"], model, RendererConfig())
        self._geometry = geometry  # on the CPU: for initial states and styles
        self._encode_speech = ChunkedRunner(runners["speech"], device, 1, 1)
        self._step_geometry = ChunkedRunner(runners["geometry"], device, 5, 3)

    @classmethod
    def through_torch(
        cls, device: torch.device, mode: Mode = "graphs", precision: Precision = "float16", fallback: str = ""
    ) -> CudaBackend:
        """With the weights that ship with the engine, through PyTorch: eager, compiled or as CUDA graphs.

        Raises WeightsError, DeviceError."""
        runners = {name: _runner(graphs.load(name, precision), device, mode) for name in graphs.NETWORKS}
        return cls(runners, *cpu_parts(), device, fallback)

    def encode_speech(self, windows: Tensor) -> Tensor:
        return self._encode_speech(windows)[0]

    def initial_state(self, sessions: int) -> GeometryState:
        return self._geometry.init_state(sessions)

    def step_geometry(
        self, features: Tensor, style: Tensor, template: Tensor, state: GeometryState
    ) -> tuple[Tensor, GeometryState]:
        lower, keys, values = self._step_geometry(features, style, template, state.keys, state.values)
        return lower, GeometryState(keys, values)

    @torch.inference_mode()
    def style(self, expression_vertices: Tensor) -> Tensor:
        return self._geometry.style(expression_vertices)

    def painter(self, video: FittedVideo, bank: Bank, model: MorphableModel) -> GpuPainter:
        return GpuPainter(self.batch_painter, video, bank, model)


def cpu_parts() -> tuple[SpeechConfig, GeometryGenerator]:
    """What `CudaBackend` needs beside its runners, with the embedded weights: the speech windows, and the geometry
    network on the CPU."""
    speech = weights.load(SpeechEncoder, SpeechConfig, weights.default_path("speech"))
    return speech.config, weights.load(GeometryGenerator, GeometryConfig, weights.default_path("geometry"))


def _runner(graph: Graph, device: torch.device, mode: Mode) -> Runner:
    graph = graph.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if mode == "graphs":
        return CudaGraphs(graph)
    return torch.compile(graph, dynamic=True) if mode == "compile" else graph

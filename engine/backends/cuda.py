"""The networks on a CUDA device: batches go up, through a graph and down again on three streams at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from engine.backends import graphs
from engine.backends.graphs import Graph, Precision
from engine.config import Quality
from engine.errors import DeviceError
from engine.models import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.renderer import References, RendererConfig
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.models.weights import load_face_model
from engine.paint.align import triangles
from engine.paint.gpu.batch import BatchPainter, Runner
from engine.paint.gpu.raster import CudaRasteriser
from engine.paint.gpu.transfer import Pinned

Mode = Literal["eager", "compile", "graphs"]

CHUNK = 16  # rows of a batch that travel together; larger batches overlap copies with computing
CAPTURES = 64  # CUDA graphs kept of one network; each holds its own inputs and outputs


def cuda_device(index: int = 0) -> torch.device:
    """The CUDA device of that index. Raises DeviceError where there is none."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        raise DeviceError(
            f"CUDA device {index} was asked for, torch {torch.__version__} finds {found}; "
            "run on the CPU, or see `personastream doctor`"
        )
    return torch.device("cuda", index)


class CudaGraphs:
    """An eager runner's work, recorded once for every batch size (powers of two) and window size and replayed from
    then on. After `CAPTURES` sizes, further ones run eagerly.
    """

    def __init__(self, runner: Runner):
        self._runner = runner
        self._captured: dict[tuple[tuple[int, ...], ...], tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        padded = 1 << (rows - 1).bit_length()
        sizes = tuple((padded, *tensor.shape[1:]) for tensor in inputs)
        if sizes not in self._captured:
            if len(self._captured) == CAPTURES:
                return self._runner(*inputs)
            self._captured[sizes] = self._capture(inputs, padded)
        graph, given, made = self._captured[sizes]
        for static, tensor in zip(given, inputs, strict=True):
            static[:rows].copy_(tensor)  # the rows behind keep an earlier call's values, which are as valid
        graph.replay()
        return tuple(static[:rows].clone() for static in made)  # the next replay overwrites what it made

    def _capture(
        self, inputs: tuple[Tensor, ...], rows: int
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]:
        given = [torch.cat([t, t[-1:].expand(rows - len(t), *t.shape[1:])]) for t in inputs]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and allocate, which must not happen while capturing
                self._runner(*given)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: encoders do.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = list(self._runner(*given))
        return graph, given, made


class _Slot:
    """One of two chunks on their way: page-locked inputs and outputs, and the event after which those have arrived."""

    def __init__(self, inputs: int, outputs: int):
        self.inputs = [Pinned() for _ in range(inputs)]
        self.outputs = [Pinned() for _ in range(outputs)]
        self.arrived = torch.cuda.Event()
        self.results: list[Tensor] = []

    def take(self) -> list[Tensor]:
        """The outputs, copied out of the page-locked memory; empty where nothing was on its way."""
        if not self.results:
            return []
        self.arrived.synchronize()
        taken, self.results = [result.clone() for result in self.results], []
        return taken


class Pipeline:
    """Runs batches on the CPU's side through a runner on the device.

    A batch is cut into chunks. While one is computed, the next one travels up and the last one down, each through one
    of two page-locked buffers. Not thread-safe: it belongs to the inference thread.
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
                slot.take()  # what a call left that failed half-way
            for i, chunk in enumerate(zip(*(tensor.split(self._chunk) for tensor in inputs), strict=True)):
                slot = self._slots[i % 2]
                arrived.append(slot.take())  # two chunks ago; its inputs are free too by then
                self._send(slot, chunk)
            last = i % 2
            arrived += [self._slots[1 - last].take(), self._slots[last].take()]
        return tuple(torch.cat(parts) for parts in zip(*(part for part in arrived if part), strict=True))

    def _send(self, slot: _Slot, chunk: tuple[Tensor, ...]) -> None:
        """Queue everything that one chunk needs; only filling the page-locked inputs happens at once."""
        with torch.cuda.stream(self._up):
            given = [
                pinned.like(tensor).copy_(tensor).to(self._device, non_blocking=True)
                for pinned, tensor in zip(slot.inputs, chunk, strict=True)
            ]
        self._compute.wait_stream(self._up)
        with torch.cuda.stream(self._compute):
            for tensor in given:
                tensor.record_stream(self._compute)
            made = self._runner(*given)
        self._down.wait_stream(self._compute)
        with torch.cuda.stream(self._down):
            for tensor, pinned in zip(made, slot.outputs, strict=True):
                tensor.record_stream(self._down)
                slot.results.append(pinned.like(tensor).copy_(tensor, non_blocking=True))
            slot.arrived.record()


class CudaBackend:
    """The backend on a CUDA device, made of one runner for each network. Raises DeviceError where there is no
    rasteriser for it.

    `fallback`: why these are not the runners that were asked for; empty where they are.
    """

    def __init__(
        self,
        runners: dict[str, Runner],
        speech: SpeechConfig,
        geometry: GeometryGenerator,
        device: torch.device,
        fallback: str = "",
    ):
        self.device, self.fallback, self.speech_config = device, fallback, speech
        self.quality: Quality = "fast"  # a canvas takes no fine textures
        self.windows = RendererConfig()  # one size for all pictures, or they would not go up together
        model = load_face_model()
        rasteriser = CudaRasteriser(torch.from_numpy(triangles(model)), device)
        self.canvas = BatchPainter(device, rasteriser, runners["renderer"], model, self.windows)
        self._geometry = geometry  # on the CPU: what is not for every frame
        self._encode_speech = Pipeline(runners["speech"], device, 1, 1)
        self._step_geometry = Pipeline(runners["geometry"], device, 5, 3)
        self._render = Pipeline(runners["renderer"], device, 7, 1)

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

    def render(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        references = (lips.pixels, lips.difference, faces.pixels, faces.difference)
        return self._render(pncc, lip_mask, lip_cell, *references)[0]


def cpu_parts() -> tuple[SpeechConfig, GeometryGenerator]:
    """What a device's backend needs beside its runners, of the embedded weights."""
    speech = weights.load(SpeechEncoder, SpeechConfig, weights.default_path("speech"))
    return speech.config, weights.load(GeometryGenerator, GeometryConfig, weights.default_path("geometry"))


def _runner(graph: Graph, device: torch.device, mode: Mode) -> Runner:
    graph = graph.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if mode == "graphs":
        return CudaGraphs(graph)
    return torch.compile(graph, dynamic=True) if mode == "compile" else graph

"""The networks on a CUDA device, through PyTorch: eager, or as recorded CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends import graphs
from engine.backends.backend import Backend
from engine.backends.graphs import Precision
from engine.config import FINE_LEVELS, Level, Quality, QualityOption
from engine.errors import DeviceError
from engine.models import weights
from engine.models.geometry import GeometryConfig, GeometryGenerator, GeometryState
from engine.models.morphable import MorphableModel
from engine.models.renderer import RendererConfig
from engine.models.speech import SpeechConfig
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import BatchPainter, Runner
from engine.paint.gpu.painter import GpuPainter
from engine.paint.gpu.raster import CudaRasteriser
from engine.paint.gpu.transfer import Download, Upload, on_stream
from engine.paint.painter import FittedVideo
from engine.paint.shape import triangles

Mode = Literal["eager", "graphs"]

GRAPH_BYTES = 1 << 30  # what recorded graphs may take together, as measured
PROBE_BYTES = 64 << 20  # a device without so much memory paints nothing more
GPU_LEVELS: tuple[Level, ...] = ("best", "fast")  # every picture is rendered, so half the rate would save nothing


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
class _Recording:
    """A recorded graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class GraphMemory:
    """The memory that all recorded graphs of a device share, and how much it is.

    Replaying one graph overwrites what the others left in it, which is harmless as long as all are replayed on one
    stream and their outputs are copied at once.
    """

    def __init__(self, device: torch.device, limit_bytes: int = GRAPH_BYTES):
        self._device, self._limit_bytes = device, limit_bytes
        self.pool = torch.cuda.graph_pool_handle()
        self.used_bytes = 0

    @property
    def full(self) -> bool:
        return self.used_bytes >= self._limit_bytes

    def count(self, record: Callable[[], _Recording]) -> _Recording:
        """The result of `record`, whose memory counts from now on."""
        before = torch.cuda.memory_reserved(self._device)
        recording = record()
        self.used_bytes += torch.cuda.memory_reserved(self._device) - before
        return recording


class CudaGraphs:
    """Records the work of an eager runner once for each batch size (powers of two) and window size, then replays it;
    eager where `memory` is full."""

    def __init__(self, runner: Runner, memory: GraphMemory):
        self._runner, self._memory = runner, memory
        self._recordings: dict[tuple[tuple[int, ...], ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        padded = 1 << (rows - 1).bit_length()
        sizes = tuple((padded, *tensor.shape[1:]) for tensor in inputs)
        if sizes not in self._recordings:
            if self._memory.full:
                return self._runner(*inputs)
            self._recordings[sizes] = self._memory.count(lambda: self._record(inputs, padded))
        recording = self._recordings[sizes]
        for static, tensor in zip(recording.inputs, inputs, strict=True):
            static[:rows].copy_(tensor)  # the rows behind keep valid values of an earlier call
        recording.graph.replay()
        return tuple(static[:rows].clone() for static in recording.outputs)  # the next replay overwrites them

    def _record(self, inputs: tuple[Tensor, ...], rows: int) -> _Recording:
        static = [torch.cat([t, t[-1:].expand(rows - len(t), *t.shape[1:])]) for t in inputs]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and allocate, which must not happen while recording
                self._runner(*static)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: encoders do.
        with torch.cuda.graph(graph, self._memory.pool, aside, capture_error_mode="thread_local"):
            outputs = list(self._runner(*static))
        return _Recording(graph, static, outputs)


class HostRunner:
    """Runs batches from the CPU through a runner on `device`, on `stream` (None on a CPU). Not thread-safe."""

    def __init__(self, runner: Runner, device: torch.device, stream: torch.cuda.Stream | None, outputs: int):
        self._runner, self._stream = runner, stream
        self._upload, self._downloads = Upload(device), [Download(device) for _ in range(outputs)]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """inputs [B, ...] on the CPU to outputs [B, ...] on the CPU."""
        with on_stream(self._stream):
            outputs = self._runner(*self._upload(*(tensor.numpy() for tensor in inputs)))
            for download, output in zip(self._downloads, outputs, strict=True):
                download.start(output)
            # A copy: the next batch overwrites page-locked memory.
            return tuple(torch.from_numpy(download.wait().copy()) for download in self._downloads)


class CudaBackend:
    """`Backend` on a CUDA device, with one runner for each network, for one thread; all its work is on one stream.

    fallback: why these are not the requested runners, else empty. Raises DeviceError where the rasteriser
    does not run on the device.
    """

    workers = 1

    def __init__(
        self,
        runners: dict[str, Runner],
        speech: SpeechConfig,
        windows: RendererConfig,
        geometry: GeometryGenerator,
        device: torch.device,
        fallback: str = "",
        quality: QualityOption = "auto",
    ):
        self.device, self.fallback, self.speech_config = device, fallback, speech
        self.spare: Callable[[str], Backend] | None = None
        self.levels: tuple[Level, ...] = GPU_LEVELS if quality == "auto" else (quality,)
        self.quality: Quality = "best" if self.levels[0] in FINE_LEVELS else "fast"
        model, stream = load_face_model(), torch.cuda.Stream(device)
        rasteriser = CudaRasteriser(torch.from_numpy(triangles(model)), device)
        self.batch_painter = BatchPainter(device, rasteriser, runners["renderer"], model, windows, stream)
        self._geometry = geometry  # on the CPU: for initial states and styles
        self._encode_speech = HostRunner(runners["speech"], device, stream, outputs=1)
        self._step_geometry = HostRunner(runners["geometry"], device, stream, outputs=3)

    @classmethod
    def through_torch(cls, device: torch.device, mode: Mode, precision: Precision = "float16") -> CudaBackend:
        """With the weights that ship with the engine, through PyTorch. Raises WeightsError, DeviceError."""
        return cls(torch_runners(device, mode, precision), *cpu_parts(), device)

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

    def lost(self) -> str:
        """Tries the device. A CUDA error stays until the process ends; a lack of memory passes if the cached memory,
        given back, makes room."""
        try:
            torch.cuda.empty_cache()
            float(torch.ones(PROBE_BYTES // 4, device=self.device).sum())
        except RuntimeError as error:
            return f"{self.device} computes nothing more ({str(error).splitlines()[0]})"
        return ""


def torch_runners(
    device: torch.device, mode: Mode, precision: Precision, networks: Sequence[str] = graphs.NETWORKS
) -> dict[str, Runner]:
    """A runner for each of `networks`. Raises WeightsError."""
    memory, runners = GraphMemory(device) if mode == "graphs" else None, dict[str, Runner]()
    for name in networks:
        graph = graphs.load(name, precision).eval().to(device)
        eager: Runner = graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runners[name] = eager if memory is None else CudaGraphs(eager, memory)
    return runners


def cpu_parts() -> tuple[SpeechConfig, RendererConfig, GeometryGenerator]:
    """What `CudaBackend` needs beside its runners, with the embedded weights: the windows of speech and of pictures,
    and the geometry network on the CPU."""
    speech = weights.load_config(SpeechConfig, weights.default_path("speech"))
    windows = weights.load_config(RendererConfig, weights.default_path("renderer"))
    return speech, windows, weights.load(GeometryGenerator, GeometryConfig, weights.default_path("geometry"))

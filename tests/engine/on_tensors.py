"""A backend that paints as a GPU's does, on the CPU: all code is that of a GPU but the rasteriser's kernels."""

from __future__ import annotations

from cpu_rasteriser import CpuRasteriser

from engine.backends import graphs
from engine.backends.cuda import HostRunner
from engine.models.geometry import GeometryState
from engine.models.renderer import RendererConfig
from engine.models.weights import load_face_model
from engine.paint.gpu.batch import BatchPainter
from engine.paint.gpu.painter import GpuPainter
from engine.paint.shape import triangles


class OnTensors:
    """`Backend` with the networks as graphs, and the states and styles of a `CpuBackend`.

    fine: paints fine pictures.
    """

    workers, fallback, spare = 1, "", None

    def __init__(self, networks, fine=False):
        self.device, self.lost = networks.device, networks.lost
        self.quality = "best" if fine else "fast"
        self.levels = (self.quality,)
        self.speech_config, self.initial_state, self.style = (
            networks.speech_config,
            networks.initial_state,
            networks.style,
        )
        runners = {name: graphs.load(name, "float32") for name in graphs.NETWORKS}
        self._encode_speech = HostRunner(runners["speech"], self.device, None, outputs=1)
        self._step_geometry = HostRunner(runners["geometry"], self.device, None, outputs=3)
        model = load_face_model()
        self.batch_painter = BatchPainter(
            self.device, CpuRasteriser(triangles(model)), runners["renderer"], model, RendererConfig()
        )

    def encode_speech(self, windows):
        return self._encode_speech(windows)[0]

    def step_geometry(self, features, style, template, state):
        lower, keys, values = self._step_geometry(features, style, template, state.keys, state.values)
        return lower, GeometryState(keys, values)

    def painter(self, video, bank, model, **settings):
        return GpuPainter(self.batch_painter, video, bank, model, **settings)

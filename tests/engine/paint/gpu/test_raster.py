"""The GPU's kernels draw what the CPU's rasteriser draws: their source runs thread by thread on the CPU, is compiled
for every known GPU and, where there is a GPU, runs on it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import DeviceError
from engine.models.morphable import project
from engine.models.weights import load_face_model
from engine.paint import raster
from engine.paint.gpu import raster as gpu_raster

ROOT = Path(__file__).parents[4]
COMPILERS = ("cuda-core", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc-cu13")
SIZE = (96, 120)
CAPABILITIES = [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]

# The variables of CUDA's threads, and a grid whose threads run one after the other: they never wait for each other.
AS_CPP = """
#include <cmath>
#define __global__
struct Place {{ int x, y, z; }};
static Place threadIdx{{}}, blockIdx, blockDim{{1, 1, 1}};
#include "{source}"
template <class Kernel, class... Arguments>
void launch(int batch, int height, int width, Kernel kernel, Arguments... arguments) {{
    for (blockIdx.z = 0; blockIdx.z < batch; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < height; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < width; ++blockIdx.x) kernel(arguments...);
}}
extern "C" void run_locate(int batch, float* v, int* t, int vs, int ts, int h, int w, int* triangle, float* weights) {{
    launch(batch, h, w, locate, v, t, vs, ts, h, w, triangle, weights);
}}
extern "C" void run_spread(int batch, int* triangle, float* weights, int* t, float* values, int ts, int vs, int k,
                           int h, int w, float* out) {{
    launch(batch, h, w, spread, triangle, weights, t, values, ts, vs, k, h, w, out);
}}
"""


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def meshes(model):
    """Two posed faces that reach over the image's edges, [2, 468, 3]; one vertex lies exactly on a pixel's centre."""
    poses = torch.tensor([[0.1, 0.6, 0.05, 0.21, 0.2, 0.18], [-0.2, -0.3, 0.4, 0.15, 0.3, 0.22]])
    posed = torch.stack([project(model.mean, pose) for pose in poses])
    posed[0, 4, :2] = torch.tensor([40.5, 30.5])
    return posed.contiguous()


@pytest.fixture(scope="module")
def expected(model, meshes):
    """Of every mesh what the CPU rasteriser makes of it: coverage, and its PNCC."""
    covered = [raster.locate(mesh.numpy(), model.triangles.numpy(), *SIZE) for mesh in meshes]
    assert all((c.triangle >= 0).mean() > 0.2 for c in covered)
    return covered, np.stack([raster.spread_codes(c, model.codes.numpy()) for c in covered])


def check(triangle, weights, pncc, expected):
    covered, drawn = expected
    assert np.array_equal(triangle, np.stack([c.triangle for c in covered]))
    assert np.array_equal(weights, np.stack([c.weights for c in covered]))
    assert np.array_equal(pncc, drawn)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to run the kernels' source on the CPU with")
def test_kernels_source_draws_what_the_cpu_rasteriser_draws(tmp_path, model, meshes, expected):
    (tmp_path / "kernels.cpp").write_text(AS_CPP.format(source=gpu_raster.SOURCE))
    command = ["c++", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))

    def pointer(array):
        return ctypes.c_void_p(array.ctypes.data)

    vertices, triangles = meshes.numpy(), model.triangles.numpy().astype(np.int32)
    triangle, weights = np.empty((2, *SIZE), np.int32), np.empty((2, *SIZE, 3), np.float32)
    numbers = (vertices.shape[1], len(triangles), *SIZE)
    library.run_locate(2, pointer(vertices), pointer(triangles), *numbers, pointer(triangle), pointer(weights))
    own = np.arange(3 * len(triangles), dtype=np.int32)
    codes = np.tile(model.codes.numpy().reshape(1, -1, 3), (2, 1, 1))
    pncc = np.empty((2, 3, *SIZE), np.float32)
    numbers = (len(triangles), codes.shape[1], 3, *SIZE)
    inputs = (pointer(triangle), pointer(weights), pointer(own), pointer(codes))
    library.run_spread(2, *inputs, *numbers, pointer(pncc))
    check(triangle, weights, pncc, expected)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_for_every_gpu(capability):
    core = pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    versions = [core.__version__, *(f"{name} {metadata.version(name)}" for name in COMPILERS if installed(name))]
    made_of = [gpu_raster.SOURCE.read_text(), inspect.getsource(gpu_raster), *versions, str(capability)]
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    cubin = kept(f"raster-{key}.cubin", lambda: gpu_raster.compile_kernels(capability).code)
    assert cubin[:4] == b"\x7fELF"
    assert all(name.encode() in cubin for name in gpu_raster.KERNELS)


def installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def kept(name, make):
    """The bytes of build/tests/`name`, made where the file is missing."""
    path = ROOT / "build" / "tests" / name
    if not path.is_file():
        content = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.rename(path)
    return path.read_bytes()


def test_broken_source_is_a_typed_error(tmp_path):
    pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void locate(int x) { nonsense; }')
    with pytest.raises(DeviceError, match=r"(?s)broken\.cu cannot be compiled for sm_89.*nonsense"):
        gpu_raster.compile_kernels((8, 9), source)


@pytest.fixture
def pretended(monkeypatch):
    """A GPU that torch reports."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return torch.device("cuda", 0)


def test_a_missing_extra_is_a_typed_error(pretended, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(DeviceError, match=r"pip install 'personastream\[cuda\]'"):
        gpu_raster.CudaRasteriser(model.triangles, pretended)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_driver_that_takes_no_kernels_is_a_typed_error(pretended, model):
    pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    with pytest.raises(DeviceError, match=r"cuda:0: its driver does not take the kernels of raster\.cu"):
        gpu_raster.CudaRasteriser(model.triangles, pretended)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_draws_what_the_cpu_rasteriser_draws(model, meshes, expected):
    device = torch.device("cuda")
    gpu = gpu_raster.CudaRasteriser(model.triangles, device)
    triangle, weights = gpu.locate(meshes.to(device), *SIZE)
    pncc = gpu.codes(triangle, weights, model.codes.to(device))
    check(triangle.cpu().numpy(), weights.cpu().numpy(), pncc.cpu().numpy(), expected)
    places = gpu.spread(triangle, weights, meshes.to(device)).cpu().numpy()
    for place, mesh, covered in zip(places, meshes.numpy(), expected[0], strict=True):
        assert np.array_equal(place, raster.spread(covered, model.triangles.numpy(), mesh[None])[0])

"""The GPU's kernels follow the CPU rasteriser's rules: their source run thread by thread on the CPU, compiled for every
GPU that we know, and, where there is one, run on it."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.errors import DeviceError
from engine.models.morphable import load_face_model, project
from engine.paint import raster
from engine.paint.gpu import raster as gpu_raster

SIZE = (96, 120)
CAPABILITIES = [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]

# What a GPU gives every thread, and every thread of a grid one after the other: the kernels never wait for each other.
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
extern "C" void run_locate(int batch, float* v, int* t, int vs, int ts, int h, int w, int* found, float* weights) {{
    launch(batch, h, w, locate, v, t, vs, ts, h, w, found, weights);
}}
extern "C" void run_spread(int batch, int* found, float* weights, int* t, float* values, int ts, int vs, int k, int h,
                           int w, float* out) {{
    launch(batch, h, w, spread, found, weights, t, values, ts, vs, k, h, w, out);
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


def check(found, weights, pncc, expected):
    covered, drawn = expected
    assert np.array_equal(found, np.stack([c.triangle for c in covered]))
    assert np.array_equal(weights, np.stack([c.weights for c in covered]))
    assert np.array_equal(pncc, drawn)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to run the kernels' source on the CPU with")
def test_kernels_source_draws_what_the_cpu_rasteriser_draws(tmp_path, model, meshes, expected):
    (tmp_path / "kernels.cpp").write_text(AS_CPP.format(source=raster.SOURCE))
    command = ["c++", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))

    def pointer(array):
        return ctypes.c_void_p(array.ctypes.data)

    vertices, triangles = meshes.numpy(), model.triangles.numpy().astype(np.int32)
    found, weights = np.empty((2, *SIZE), np.int32), np.empty((2, *SIZE, 3), np.float32)
    numbers = (vertices.shape[1], len(triangles), *SIZE)
    library.run_locate(2, pointer(vertices), pointer(triangles), *numbers, pointer(found), pointer(weights))
    own = np.arange(3 * len(triangles), dtype=np.int32)
    codes = np.tile(model.codes.numpy().reshape(1, -1, 3), (2, 1, 1))
    pncc = np.empty((2, 3, *SIZE), np.float32)
    numbers = (len(triangles), codes.shape[1], 3, *SIZE)
    given = (pointer(found), pointer(weights), pointer(own), pointer(codes))
    library.run_spread(2, *given, *numbers, pointer(pncc))
    check(found, weights, pncc, expected)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_for_every_gpu(capability):
    pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    compiled = raster.compile_kernels(capability)
    assert compiled.code[:4] == b"\x7fELF"
    assert all(name.encode() in compiled.code for name in raster.KERNELS)


def test_broken_source_is_a_typed_error(monkeypatch, tmp_path):
    pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void locate(int x) { nonsense; }')
    monkeypatch.setattr(gpu_raster, "SOURCE", tmp_path / "broken.cu")
    with pytest.raises(DeviceError, match=r"(?s)broken\.cu cannot be compiled for sm_89.*nonsense"):
        raster.compile_kernels((8, 9))


@pytest.fixture
def pretended(monkeypatch):
    """A GPU as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return torch.device("cuda", 0)


def test_a_missing_extra_is_a_typed_error(pretended, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(DeviceError, match=r"pip install 'personastream\[cuda\]'"):
        raster.CudaRasteriser(model.triangles, pretended)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_driver_that_takes_no_kernels_is_a_typed_error(pretended, model):
    pytest.importorskip("cuda.core", reason="the extra `cuda` is not installed")
    with pytest.raises(DeviceError, match=r"cuda:0: its driver does not take the kernels of raster\.cu"):
        raster.CudaRasteriser(model.triangles, pretended)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_draws_what_the_cpu_rasteriser_draws(model, meshes, expected):
    device = torch.device("cuda")
    gpu = raster.CudaRasteriser(model.triangles, device)
    found, weights = gpu.locate(meshes.to(device), *SIZE)
    pncc = gpu.codes(found, weights, model.codes.to(device))
    check(found.cpu().numpy(), weights.cpu().numpy(), pncc.cpu().numpy(), expected)
    places = gpu.spread(found, weights, meshes.to(device)).cpu().numpy()
    for place, mesh, covered in zip(places, meshes.numpy(), expected[0], strict=True):
        assert np.array_equal(place, raster.spread(covered, model.triangles.numpy(), mesh[None])[0])

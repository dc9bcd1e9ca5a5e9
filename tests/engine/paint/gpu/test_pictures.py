"""Pictures painted on a GPU are the CPU's. In the steady state painting allocates nothing and waits for the pictures
alone."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from painted import check, painted_together

from engine.avatar.avatar import Avatar
from engine.backends import graphs
from engine.backends.cpu import CpuBackend
from engine.backends.cuda import CudaBackend, cpu_parts, cuda_device
from engine.backends.select import backend_for
from engine.live.pipeline import AvatarPipeline
from engine.models.renderer import RendererConfig
from engine.models.weights import load_face_model
from engine.paint.painter import FittedVideo

BATCH = 8
WINDOWS = RendererConfig()
MODES = [("eager", "float32", 50), ("graphs", "float32", 50), ("graphs", "float16", 42)]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # what compilers say about one GPU or another fails no test
]


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def avatar(avatar_path):
    return Avatar.open(avatar_path, quality="fast")


@pytest.fixture(scope="module")
def lips(avatar, model):
    """lips(i): those of another frame than frame i."""
    vertices = model.vertices(avatar.alpha, avatar.beta)[:, model.lower]
    return lambda index: vertices[(index + 37) % len(vertices)]


@pytest.fixture(scope="module")
def expected(avatar, model, lips):
    """expected(i): what the CPU paints on frame i, and the frame itself."""
    video = FittedVideo.of(avatar)
    painter = CpuBackend.embedded(windows=WINDOWS, bfloat16=False).painter(video, avatar.bank, model)
    return lambda index: (painter.paint(index, lips(index)), video.read(index))


def check_all(backend, avatar, model, lips, expected, alike_db):
    painter = backend.painter(FittedVideo.of(avatar), avatar.bank, model)
    places = [0, 1, 20, 21, avatar.frames - 1]
    for count in (1, len(places)):
        pictures = painted_together([(painter, index, lips(index)) for index in places[:count]])
        for index, picture in zip(places, pictures, strict=False):
            check(picture, *expected(index), alike_db)


@pytest.mark.parametrize(("mode", "precision", "alike_db"), MODES)
def test_pictures_are_the_cpus(avatar, model, lips, expected, mode, precision, alike_db):
    backend = CudaBackend.through_torch(cuda_device(), mode, precision)
    check_all(backend, avatar, model, lips, expected, alike_db)


@pytest.mark.parametrize("mode", ["auto", "tensorrt"])
def test_the_backend_of_a_server_paints_them_too(avatar, model, lips, expected, mode):
    check_all(backend_for("cuda", "fast", mode), avatar, model, lips, expected, 42)


def test_what_was_opened_in_one_thread_paints_in_another(avatar, model, lips, expected):
    pipeline = AvatarPipeline(CudaBackend.through_torch(cuda_device(), "graphs"), avatar, model)
    painted = []
    thread = threading.Thread(target=lambda: painted.append(*pipeline.perform(pipeline.paint_job(20, lips(20)))))
    thread.start()
    thread.join()
    check(painted[0], *expected(20), 42)


def counted(device):
    """How often the driver was asked for memory, and was given some back."""
    stats = torch.cuda.memory_stats(device)
    names = ("segment.all.allocated", "segment.all.freed", "num_alloc_retries", "num_ooms")
    return Counter({name: stats.get(name, 0) for name in names})


@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_the_steady_state_allocates_nothing_and_waits_for_the_pictures_alone(avatar, model, lips, mode):
    device = cuda_device()
    backend = CudaBackend.through_torch(device, mode)
    painter = backend.painter(FittedVideo.of(avatar), avatar.bank, model)

    def run(frames):
        for first in frames:
            batch = [(painter, first + i // 2, lips(first + i)) for i in range(BATCH)]
            assert len(painted_together(batch)) == BATCH

    last = avatar.frames - BATCH
    run([*range(0, last, 4), *range(0, last, 4)])  # twice round, so that old frames have made room for new ones
    before, pinned = counted(device), torch.cuda.host_memory_stats().get("num_host_alloc", 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(range(0, last, 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted(device) == before
    assert torch.cuda.host_memory_stats().get("num_host_alloc", 0) == pinned


def test_a_batch_that_failed_leaves_nothing_in_the_next_one(avatar, model, lips, expected):
    device, calls = cuda_device(), []
    runners = {name: graphs.load(name, "float32").eval().to(device) for name in graphs.NETWORKS}
    renderer = runners["renderer"]

    def failing_once(*inputs):
        calls.append(inputs)
        return renderer(*inputs) if len(calls) > 1 else 1 / 0

    backend = CudaBackend(runners | {"renderer": failing_once}, *cpu_parts(), device)
    painter = backend.painter(FittedVideo.of(avatar), avatar.bank, model)
    with pytest.raises(ZeroDivisionError):
        painted_together([(painter, 40, lips(40)), (painter, 41, lips(41))])
    picture = painter.paint(20, lips(20))
    check(picture, *expected(20), 42)
    assert np.array_equal(picture, painter.paint(20, lips(20)))

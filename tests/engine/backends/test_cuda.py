"""On a GPU the networks' outputs are those of the CPU, in every mode and for batches of any size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engine.backends import graphs, selfcheck
from engine.backends.cpu import CpuBackend
from engine.backends.cuda import CudaBackend, CudaGraphs, GraphMemory, HostRunner, cpu_parts, cuda_device
from engine.backends.onnx import psnr_db
from engine.backends.tensorrt import builder, runner
from engine.backends.tensorrt.cache import PlanCache
from engine.errors import DeviceError
from engine.models import weights
from engine.models.geometry import GeometryState
from engine.models.speech import SpeechConfig, SpeechEncoder

ROOT = Path(__file__).parents[3]
BATCHES = [1, 3, 32]

pytestmark = pytest.mark.filterwarnings("default")  # what compilers say about one GPU or another fails no test
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def reference():
    return CpuBackend.embedded(bfloat16=False, int8=False)


@pytest.fixture(scope="module")
def precise():
    """float32 without the tensor cores' shortened one."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def answers(backend, batch):
    """A backend's outputs for the graphs' examples: features, lower vertices, state and the renderer's pixels."""
    free = {**graphs.USUAL, "batch": batch}
    examples = {name: graphs.load(name, "float32").example(free) for name in graphs.NETWORKS}
    features = backend.encode_speech(*examples["speech"])
    moved, style, template, keys, values = examples["geometry"]
    lower, state = backend.step_geometry(moved, style, template, GeometryState(keys, values))
    if backend.device.type == "cpu":
        renderer = graphs.load("renderer", "float32").eval()
    else:
        renderer = HostRunner(backend.batch_painter.renderer, backend.device, torch.cuda.Stream(), outputs=1)
    with torch.inference_mode():
        (pixels,) = renderer(*examples["renderer"])
    return features, lower, state.keys, state.values, pixels


def alike_db(backend, reference, batch):
    outputs, expected = answers(backend, batch), answers(reference, batch)
    assert all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in outputs)
    return min(psnr_db(o, e) for o, e in zip(outputs, expected, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_a_typed_error():
    with pytest.raises(DeviceError, match=r"CUDA device 0 was asked for, .* finds 0; run on the CPU"):
        cuda_device()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_gpu_check_without_a_gpu_says_so():
    done = subprocess.run([ROOT / "tools" / "gpu-check"], capture_output=True, text=True)
    assert done.returncode == 2 and "no NVIDIA GPU" in done.stderr


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_gpu_gives_what_the_cpu_gives(reference, precise, mode, batch):
    backend = CudaBackend.through_torch(cuda_device(), mode, "float32")
    assert alike_db(backend, reference, batch) > 80


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_reduced_precision_is_alike(reference, precision):
    backend = CudaBackend.through_torch(cuda_device(), "graphs", precision)
    assert alike_db(backend, reference, 4) > (50 if precision == "float16" else 35)


def test_a_batch_that_failed_leaves_nothing_in_the_next_one_and_outputs_are_kept():
    def double(x):
        if float(x.sum()) < 0:
            raise ValueError("below zero")
        return 2 * x, x

    device = cuda_device() if torch.cuda.is_available() else torch.device("cpu")
    runner = HostRunner(double, device, torch.cuda.Stream() if device.type == "cuda" else None, outputs=2)
    x = torch.arange(21.0).reshape(7, 3)
    first = runner(x)
    with pytest.raises(ValueError, match="below zero"):
        runner(-x)
    assert torch.equal(runner(x[:2] + 1)[0], 2 * (x[:2] + 1))
    assert torch.equal(first[0], 2 * x) and torch.equal(first[1], x), "later batches do not overwrite them"


def test_the_geometry_network_takes_the_steps_of_the_installed_speech_encoder(monkeypatch, tmp_path):
    weights_of = weights.default_path
    network = SpeechEncoder(SpeechConfig(step_frames=6))
    weights.save(network, tmp_path / "speech.safetensors", facts={})
    monkeypatch.setattr(
        weights, "default_path", lambda name: tmp_path / "speech.safetensors" if name == "speech" else weights_of(name)
    )
    assert graphs.load("geometry", "float32").inputs["features"][1] == 6


@pytest.mark.gpu
@on_gpu
def test_recorded_graphs_serve_shorter_batches_and_leave_earlier_answers_alone(reference, precise):
    backend = CudaBackend.through_torch(cuda_device(), "graphs", "float32")
    first = answers(backend, 4)
    kept = [tensor.clone() for tensor in first]
    assert alike_db(backend, reference, 3) > 80
    assert all(torch.equal(now, then) for now, then in zip(first, kept, strict=True))


@pytest.mark.gpu
@on_gpu
def test_graphs_of_all_networks_share_their_memory_in_any_order_of_replays(reference, precise):
    backend = CudaBackend.through_torch(cuda_device(), "graphs", "float32")
    for batch in (8, 1, 2, 8, 1, 4, 2):
        assert alike_db(backend, reference, batch) > 80


@pytest.mark.gpu
@on_gpu
def test_sizes_for_which_there_is_no_memory_run_eagerly(reference, precise):
    device = cuda_device()
    memory = GraphMemory(device, limit_bytes=1)
    runners = {name: CudaGraphs(graphs.load(name, "float32").eval().to(device), memory) for name in graphs.NETWORKS}
    backend = CudaBackend(runners, *cpu_parts(), device)
    assert alike_db(backend, reference, 2) > 80
    used_bytes = memory.used_bytes
    assert memory.full
    assert alike_db(backend, reference, 5) > 80 and memory.used_bytes == used_bytes


@pytest.mark.gpu
@on_gpu
def test_a_device_is_lost_after_an_error_that_stays():
    """In a child process: such an error ends its use of the device."""
    code = (
        "import torch\n"
        "from engine.backends.cuda import CudaBackend, cuda_device\n"
        "backend = CudaBackend.through_torch(cuda_device(), 'eager')\n"
        "assert backend.lost() == ''\n"
        "try:\n"
        "    torch.zeros(3, device='cuda')[torch.tensor([7], device='cuda')].cpu()\n"
        "except RuntimeError:\n"
        "    assert 'computes nothing more' in backend.lost(), backend.lost()\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@on_gpu
def test_the_check_of_this_card_passes():
    found = selfcheck.check_apart(cuda_device())
    assert found.mode == "graphs", found.reason


@pytest.mark.gpu
@on_gpu
def test_without_tensorrt_torch_runs_and_the_log_says_why(reference, monkeypatch, tmp_path, caplog):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    backend = runner.open_backend(cuda_device(), "tensorrt", cache=PlanCache(tmp_path))
    assert "TensorRT is not used" in caplog.text and "needs tensorrt" in backend.fallback
    assert alike_db(backend, reference, 2) > 50


@pytest.mark.gpu
@pytest.mark.slow
@on_gpu
def test_plans_answer_as_torch_does(reference, tmp_path):
    capability = torch.cuda.get_device_capability()
    names = ["tensorrt_rtx", "tensorrt"] if capability in builder.RTX_CAPABILITIES else ["tensorrt"]
    if not any(map(find_spec, names)):
        pytest.skip(f"{' or '.join(names)} is not installed")
    backend = runner.open_backend(cuda_device(), "tensorrt", cache=PlanCache(tmp_path))
    assert not backend.fallback
    assert min(alike_db(backend, reference, batch) for batch in BATCHES) > 45
    lines: list[str] = []
    runner.plan_runners(cuda_device(), cache=PlanCache(tmp_path), progress=lines.append)
    assert not lines

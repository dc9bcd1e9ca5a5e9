"""The requested device computes, or an error says why not. The tests set what torch reports about GPUs, so that they
describe any machine."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.backends.cpu import CpuBackend
from engine.backends.select import NEEDED_BYTES, backend_for, choose, describe
from engine.config import LEVELS, ComputeConfig
from engine.errors import DeviceError, SettingError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(monkeypatch):
    """machine([free bytes, …], driver=…, broken=…): one with such GPUs."""
    real = torch.ones

    def pretend(free, driver=True, broken=()):
        def ones(count, device):
            if device.index in broken:
                raise RuntimeError("no kernel image is available for execution on the device\nmore lines")
            return real(count)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: f"GPU {d.index}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (free[d.index], 2 * NEEDED_BYTES))
        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.util)  # the extra is there
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if driver else None)

    return pretend


def test_without_a_gpu_auto_is_the_cpu_and_nothing_is_amiss(machine):
    machine([], driver=False)
    choice = choose("auto")
    assert choice.device == torch.device("cpu") and "finds no CUDA device" in choice.reason and not choice.fallback


def test_a_driver_without_a_torch_for_it_is_a_fallback_that_says_so(machine):
    machine([], driver=True)
    assert "install a torch built for CUDA" in choose("auto").fallback


def test_auto_takes_the_first_gpu_that_works_and_has_room(machine):
    machine([NEEDED_BYTES - 1, NEEDED_BYTES, NEEDED_BYTES, NEEDED_BYTES], broken=[1])
    choice = choose("auto")
    assert choice.device == torch.device("cuda", 2) and not choice.fallback


def test_gpus_that_do_not_serve_are_all_named_in_the_fallback(machine):
    machine([NEEDED_BYTES - (1 << 30), NEEDED_BYTES], broken=[1])
    choice = choose("auto")
    assert choice.device == torch.device("cpu")
    assert "GPU 0 (cuda:0) has 1.0 of 4.0 GiB free, expected 2.0" in choice.fallback
    assert "GPU 1 (cuda:1) does not run torch" in choice.fallback and "more lines" not in choice.fallback


def test_a_gpu_that_was_asked_for_is_taken_or_an_error_says_why_not(machine):
    machine([NEEDED_BYTES, NEEDED_BYTES, 0])
    assert choose("cuda").device == torch.device("cuda", 0)
    assert choose("cuda:1").device == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="--device cuda:2: GPU 2 .* has 0.0 of 4.0 GiB free.*--device auto"):
        choose("cuda:2")
    with pytest.raises(DeviceError, match=r"torch finds GPU 0 \(cuda:0\), GPU 1 .*, GPU 2 .* alone; choose"):
        choose("cuda:3")
    machine([], driver=False)
    with pytest.raises(DeviceError, match="finds no CUDA device; choose `--device auto` or `cpu`"):
        choose("cuda")


def test_a_gpu_whose_driver_is_broken_is_told_apart(machine, monkeypatch):
    def get_device_name(device):
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.")

    machine([NEEDED_BYTES])
    monkeypatch.setattr(torch.cuda, "get_device_name", get_device_name)
    assert "cuda:0 does not run torch" in choose("auto").fallback
    with pytest.raises(DeviceError, match="--device cuda: cuda:0 does not run .*driver initialization failed"):
        choose("cuda")


@pytest.mark.parametrize("error", [
    DeviceError("its driver does not take the kernels"),
    torch.OutOfMemoryError("CUDA out of memory.\nmore lines"),
    RuntimeError("CUDA error: unknown error\nmore lines"),
])  # fmt: skip
def test_a_gpu_that_fails_at_the_networks_is_given_up_for_the_cpu_unless_it_was_asked_for(machine, monkeypatch, error):
    real = torch.nn.Module.to

    def to(module, *places, **options):
        if places:  # a device
            raise error
        return real(module, **options)

    machine([NEEDED_BYTES])
    monkeypatch.setattr(torch.nn.Module, "to", to)
    backend = backend_for("auto", gpu_mode="eager")
    assert type(backend) is CpuBackend and backend.quality == "best"
    reason = str(error).partition("\n")[0]
    assert reason in backend.fallback and "more lines" not in backend.fallback
    with pytest.raises(DeviceError, match=reason):
        backend_for("cuda", gpu_mode="eager")


def test_a_gpu_whose_pictures_are_not_the_cpus_is_given_up(machine, monkeypatch, tmp_path):
    machine([NEEDED_BYTES])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = backend_for("auto")
    assert type(backend) is CpuBackend and "the check of its pictures failed" in backend.fallback
    assert not list(tmp_path.rglob("*.json")), "it may pass another time"
    with pytest.raises(DeviceError, match="the check of its pictures failed, CUDA device 0 was asked for"):
        backend_for("cuda")


def test_a_gpu_without_its_extra_is_told_apart(machine, monkeypatch):
    machine([NEEDED_BYTES])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'personastream[cuda]'" in choose("auto").fallback


def test_a_gpu_has_no_half_levels_and_a_cpu_has_all(machine):
    machine([NEEDED_BYTES])
    for level in ("best-half", "fast-half"):
        with pytest.raises(SettingError, match=f"--quality {level}: a GPU has best and fast alone"):
            backend_for("auto", level)
    assert ComputeConfig().quality == "auto"
    backends = [backend_for("cpu", quality) for quality in ("auto", *LEVELS)]
    assert [backend.levels for backend in backends] == [LEVELS, *((level,) for level in LEVELS)]
    assert [backend.quality for backend in backends] == ["best", "best", "best", "fast", "fast"]


@pytest.mark.parametrize("word", ["gpu", "", "CUDA", "cuda:", "cuda:-1", "cuda:one", "cpu:0", "auto "])
def test_another_word_is_refused(word):
    with pytest.raises(SettingError, match="expected auto, cpu, cuda or cuda:N"):
        choose(word)


@pytest.mark.parametrize("requested", ["cpu", "auto"])
def test_the_cpu_that_was_chosen_is_the_reference_backend(machine, requested, caplog):
    machine([], driver=False)
    with caplog.at_level(logging.INFO):
        backend = backend_for(requested)
    assert type(backend) is CpuBackend and backend.device.type == "cpu" and not backend.fallback
    assert [
        (r.levelname, r.getMessage().startswith(f"device {describe(torch.device('cpu'))}: ")) for r in caplog.records
    ] == [("INFO", True)]


def test_a_fallback_is_logged_as_a_warning_and_kept(machine, caplog):
    machine([0])
    backend = backend_for("auto")
    assert "0.0 of 4.0 GiB free" in backend.fallback
    assert [(r.levelname, backend.fallback in r.getMessage()) for r in caplog.records] == [("WARNING", True)]


@pytest.mark.slow
def test_a_machine_without_a_gpu_loads_nothing_for_one():
    code = (
        "import sys, engine.backends.select\n"
        "engine.backends.select.backend_for('cpu')\n"
        "gpu = {'engine.backends.tensorrt.runner', 'cuda.core', 'tensorrt_rtx', 'onnx'}\n"
        "loaded = gpu & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_takes_the_gpu_that_is_there():
    backend = backend_for("auto")
    assert backend.device.type == "cuda" and torch.cuda.get_device_name(0) in describe(backend.device)

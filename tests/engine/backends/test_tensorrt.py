"""TensorRT plans are built for GPUs that are not here, cached, found again, and built again when damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from engine.backends import graphs
from engine.backends.tensorrt import builder, runner
from engine.backends.tensorrt.builder import build_apart
from engine.backends.tensorrt.cache import PlanCache, PlanKey, plan_for
from engine.errors import PlanError
from engine.models import weights

ROOT = Path(__file__).parents[3]
ADA, BLACKWELL, HOPPER = (8, 9), (12, 0), (9, 0)
KEY = PlanKey(
    network="renderer",
    weights="0123",
    code="4567",
    spans="{}",
    precision="float16",
    builder="tensorrt_rtx 1.7",
    driver="580.1",
    capability="8.9",
)


def executable(path, script):
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# ---- the cache


def test_stored_plan_is_found_by_its_key(tmp_path):
    cache = PlanCache(tmp_path / "plans")
    assert cache.find(KEY) is None
    path = cache.store(KEY, b"plan")
    assert cache.find(KEY) == b"plan" and list(cache.folder.iterdir()) == [path]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PlanKey)])
def test_plan_of_another_key_is_not_found(tmp_path, field):
    cache = PlanCache(tmp_path)
    cache.store(KEY, b"plan")
    assert cache.find(dataclasses.replace(KEY, **{field: "other"})) is None


def test_key_changes_with_all_that_a_plan_depends_on(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    path = tmp_path / "weights.safetensors"

    def name(precision="float16", capability=ADA, driver="580.1"):
        return PlanKey.of("renderer", path, precision, capability, driver).file_name

    path.write_bytes(b"some weights")
    first = name()
    assert name() == first
    others = {name(precision="bfloat16"), name(capability=BLACKWELL), name(driver="580.2")}
    path.write_bytes(b"other weights")
    others.add(name())
    path.write_bytes(b"some weights")
    assert len(others) == 4 and first not in others
    spans = json.loads(PlanKey.of("renderer", path, "float16", ADA, "580.1").spans)
    assert spans == {axis: [span.least, span.usual, span.most] for axis, span in graphs.SPANS.items()}


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"?" + b[41:], lambda b: b"", lambda b: b[:9]])
def test_damaged_plan_counts_as_missing_and_is_logged(tmp_path, caplog, damage):
    cache = PlanCache(tmp_path)
    path = cache.store(KEY, b"plan of some length")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.find(KEY) is None and "damaged plan" in caplog.text
    cache.store(KEY, b"again")
    assert cache.find(KEY) == b"again"


def test_plans_are_kept_in_the_users_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PlanCache().folder == tmp_path / "personastream" / "plans"


# ---- the builder's process


def test_builder_that_crashes_is_an_error_here(tmp_path):
    """The builder is another process: its end does not end this one."""
    python, lines = executable(tmp_path / "python", "echo building; kill -SEGV $$"), []
    with pytest.raises(PlanError, match="renderer: the builder was ended by SIGSEGV; its last lines: building"):
        build_apart("renderer", weights.default_path("renderer"), "float16", ADA, lines.append, python=python)
    assert lines == ["building"]


def test_builder_that_hangs_is_ended(tmp_path):
    python, path = executable(tmp_path / "python", "exec sleep 60"), weights.default_path("renderer")
    with pytest.raises(PlanError, match="SIGKILL"):
        build_apart("renderer", path, "float16", ADA, print, within_s=0.2, python=python)


@pytest.mark.slow
def test_error_names_the_file_that_the_builder_could_not_read(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    with pytest.raises(PlanError, match=r"ended with 1; .*none\.safetensors: no such weights"):
        build_apart("geometry", tmp_path / "none.safetensors", "float32", ADA, print)


def test_missing_library_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PlanError, match=r"9\.0 needs tensorrt; pip install 'tensorrt'"):
        builder.library(HOPPER)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        PlanError, match=r"8\.9 needs tensorrt_rtx or tensorrt; pip install 'personastream\[tensorrt\]'"
    ):
        builder.library(ADA)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_missing_driver_is_an_error_with_the_remedy():
    with pytest.raises(PlanError, match="install the driver's tools"):
        runner.driver_version()


# ---- plans of the embedded weights, built without a GPU


@pytest.mark.slow
@pytest.mark.parametrize(("network", "capability"), [("renderer", ADA), ("speech", ADA), ("geometry", BLACKWELL)])
def test_plan_is_built_for_a_gpu_that_is_not_here_and_found_again(network, capability):
    """Built once: the plan stays in build/tests until the weights, our code or TensorRT change."""
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    cache, path, lines = PlanCache(ROOT / "build" / "tests" / "plans"), weights.default_path(network), []
    missing = cache.find(PlanKey.of(network, path, "float16", capability, "none")) is None

    def plan():
        return plan_for(
            network,
            path,
            precision="float16",
            capability=capability,
            driver="none",
            cache=cache,
            progress=lines.append,
        )

    built = plan()
    weight_bytes = sum(p.numel() * p.element_size() for p in graphs.load(network, "float16").parameters())
    assert len(built) > weight_bytes and any("Building engine" in line for line in lines) == missing
    lines.clear()
    assert plan() == built and not lines

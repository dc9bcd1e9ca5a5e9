"""The house's arrows: who may import whom, and that importing does nothing else."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "engine": set(),
    "streaming": {"engine"},
    "precompute": {"engine"},
    "training": {"engine", "precompute"},
    "benchmarks": {"engine", "streaming"},
}
MODELS_MAY_IMPORT = {"torch", "numpy", "safetensors", "transformers", *sys.stdlib_module_names}
MODELS_MAY_USE = ("engine.models", "engine.config")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that a file imports, also inside functions, and the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "engine":
                yield from ((f"engine.{name.name}", node.lineno) for name in node.names)
            else:
                yield node.module or "", node.lineno


@pytest.mark.parametrize("package", ARROWS)
def test_import_arrows_point_down_only(package):
    assert modules(package)
    for path in modules(package):
        for name, line in imports(path):
            other = name.split(".")[0]
            allowed = other not in {*ARROWS, "tests", "demo"} or other == package or other in ARROWS[package]
            assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_models_need_nothing_but_torch_and_their_own():
    for path in modules("engine/models"):
        for name, line in imports(path):
            allowed = name.split(".")[0] in MODELS_MAY_IMPORT or name.startswith(MODELS_MAY_USE)
            assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name}"


# Modules for frameworks that cannot be installed beside the engine.
FOREIGN = {"streaming.livekit": "livekit", "streaming.pipecat": "pipecat"}

IMPORT_ALL = """
import importlib, logging, sys, threading
sys.argv = ["personastream", "--definitely-not-an-option"]
for name in {names!r}:
    importlib.import_module(name)
import torch
assert threading.active_count() == 1, threading.enumerate()
assert not torch.cuda.is_initialized()
assert not logging.getLogger().handlers, "logging was set up"
assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
heavy = {heavy!r} & set(sys.modules)
assert not heavy, f"imported without being used: {{heavy}}"
"""


@pytest.mark.parametrize(("packages", "heavy"), [
    (("engine",), {"mediapipe", "aiohttp", "aiortc", "jax", "scipy.signal", "matplotlib", "transformers"}),
    (("engine", "streaming", "precompute", "training"), {"mediapipe", "jax", "matplotlib", "onnxruntime"}),
])  # fmt: skip
def test_importing_has_no_side_effect(packages, heavy):
    paths = [path.relative_to(ROOT) for package in packages for path in modules(package)]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    names = [name for name in names if name not in FOREIGN or importlib.util.find_spec(FOREIGN[name])]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL.format(names=names, heavy=heavy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""

"""Which packages and rooms may import which others, and that importing has no side effect."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
# The rooms of a package, from the lowest to the highest: a room imports from those below it and those of its level.
# "" stands for the package's own files, which every room needs.
ENGINE_ROOMS = [{""}, {"models"}, {"avatar", "paint", "backends"}, {"live"}, {"commands"}]
MODELS_MAY_IMPORT = {"torch", "numpy", "safetensors", "transformers", *sys.stdlib_module_names}
MODELS_MAY_USE = ("engine.models", "engine.config", "engine.errors")
# The rooms that each room of `streaming` may import, beside itself and the package's own files.
STREAMING_ROOMS = {
    "": set(),
    "agents": {"speech"},
    "voices": set(),
    "speech": {"server", "voices"},
    "webrtc": {"publish", "server"},
    "publish": {"server", "webrtc"},
    "local": set(),
    "server": {"publish", "speech", "voices", "webrtc"},
    "cluster": {"server", "voices"},
    "commands": {"cluster", "local", "publish", "server", "voices"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that a file imports, also inside functions, and the lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            parent = node.module or ""
            children = [f"{parent}.{name.name}" for name in node.names]
            yield from ((child if is_module(child) else parent, node.lineno) for child in children)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(name: str) -> str:
    """live of engine.live.session; empty for a file of the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else ""


def imports_between_rooms(package: str) -> Iterator[tuple[str, str, str]]:
    """(where, room, other room) of all imports within a package."""
    for path in modules(package):
        if path in (ROOT / package / "__init__.py", ROOT / package / "__main__.py"):
            continue  # the public names, the command line: they stand above all rooms
        for name, line in imports(path):
            if name.split(".")[0] == package:
                yield f"{path.relative_to(ROOT)}:{line} imports {name}", room_of(name_of(path)), room_of(name)


@pytest.mark.parametrize("package", ARROWS)
def test_import_arrows_point_down_only(package):
    assert modules(package)
    for path in modules(package):
        for name, line in imports(path):
            other = name.split(".")[0]
            allowed = other not in {*ARROWS, "tests", "demo"} or other == package or other in ARROWS[package]
            assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_rooms_of_the_engine_import_from_below_only():
    level = {room: n for n, rooms in enumerate(ENGINE_ROOMS) for room in rooms}
    for where, room, other in imports_between_rooms("engine"):
        assert level[other] <= level[room], where


def test_rooms_of_the_server_know_what_they_need_only():
    for where, room, other in imports_between_rooms("streaming"):
        assert other in {"", room, *STREAMING_ROOMS[room]}, where


@pytest.mark.parametrize("package", ["engine", "streaming", "precompute", "training", "benchmarks"])
def test_no_modules_import_each_other(package):
    arrows = {
        name_of(path): {name for name, _ in imports(path) if name.startswith(f"{package}.")}
        for path in modules(package)
    }
    arrows[package] = set()  # the public names are imported when they are used
    TopologicalSorter(arrows).prepare()  # raises CycleError with the modules of a cycle


def test_models_need_nothing_but_torch_and_their_own():
    for path in modules("engine/models"):
        for name, line in imports(path):
            allowed = name.split(".")[0] in MODELS_MAY_IMPORT or name.startswith(MODELS_MAY_USE)
            assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name}"


# Modules for frameworks that cannot be installed beside the engine.
FOREIGN = {"streaming.agents.livekit": "livekit", "streaming.agents.pipecat": "pipecat"}

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


@pytest.mark.slow
@pytest.mark.parametrize(("packages", "heavy"), [
    (("engine",), {"mediapipe", "aiohttp", "aiortc", "jax", "scipy.signal", "matplotlib", "transformers"}),
    (("engine", "streaming", "precompute", "training"), {"mediapipe", "jax", "matplotlib", "onnxruntime"}),
])  # fmt: skip
def test_importing_has_no_side_effect(packages, heavy):
    names = [name_of(path) for package in packages for path in modules(package)]
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

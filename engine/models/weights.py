"""Weights on disk: fp16 safetensors whose metadata holds format, network, configuration and training facts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from engine.errors import WeightsError
from engine.models.morphable import MorphableModel

FORMAT = 1
ASSETS = Path(__file__).parents[1] / "assets"
_REMEDY = "reinstall the package, or train them with `python -m training`"


Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config")


def default_path(name: str) -> Path:
    """The embedded weights called `name`: face_model, speech, geometry or renderer."""
    return ASSETS / f"{name}.safetensors"


def save(module: nn.Module, path: Path, *, facts: dict[str, str]) -> None:
    """Write `module` (with its `config`) in fp16, under a temporary name first. facts: of its training."""
    tensors = {
        name: (t.half() if t.is_floating_point() else t).contiguous().cpu() for name, t in module.state_dict().items()
    }
    metadata = {
        "format": str(FORMAT),
        "network": type(module).__name__,
        "config": json.dumps(dataclasses.asdict(cast(Any, module).config)),
        "facts": json.dumps(facts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)
    temporary.rename(path)


def load(network: type[Module], config: type[Any], path: Path) -> Module:
    """Build `network(config(...))` from the file's metadata, float32, in evaluation mode.

    Raises WeightsError for a missing or damaged file, another network, another format or other tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights; {_REMEDY}")
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}); {_REMEDY}") from error
    if metadata.get("format") != str(FORMAT) or metadata.get("network") != network.__name__:
        raise WeightsError(
            f"{path}: holds {metadata.get('network')} in format {metadata.get('format')}; "
            f"expected {network.__name__} in format {FORMAT}; {_REMEDY}"
        )
    try:
        module = network(_config(config, metadata))
        module.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())  # torch lists one tensor a line
        raise WeightsError(f"{path}: does not fit {network.__name__} ({reason:.300}); {_REMEDY}") from error
    return module.eval().requires_grad_(False)


def load_config(config: type[Config], path: Path) -> Config:
    """The configuration alone of the network at `path`. Raises WeightsError."""
    try:
        with safe_open(path, "pt") as stored:
            return _config(config, stored.metadata() or {})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: no weights with a {config.__name__} ({error}); {_REMEDY}") from error


def _config(config: type[Config], metadata: dict[str, str]) -> Config:
    return config(**json.loads(metadata["config"]))


def load_face_model(path: Path | None = None) -> MorphableModel:
    """The embedded face model, or the one at `path`. Raises WeightsError for a missing or damaged file."""
    path = path or default_path("face_model")
    if not path.is_file():
        raise WeightsError(f"{path}: no such face model; {_REMEDY}")
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        return MorphableModel(**{n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    except (SafetensorError, OSError, TypeError) as error:
        raise WeightsError(f"{path}: not a readable face model ({error}); {_REMEDY}") from error


def fingerprint(path: Path) -> str:
    """The first 16 hex digits of the file's sha256, which identify the weights of an avatar."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

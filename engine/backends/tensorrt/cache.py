"""TensorRT plans on disk.

A plan can be built again from the weights at any time. Its key has everything that it depends on. A damaged file, or
one with another key, counts as missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engine import models
from engine.backends import graphs
from engine.backends.graphs import Precision
from engine.backends.tensorrt.builder import Capability, Progress, build_apart, dotted, library
from engine.models import weights

log = logging.getLogger(__name__)

DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class PlanKey:
    """Everything that a plan depends on. weights, code: fingerprints of the weights file and of our network code."""

    network: str
    weights: str
    code: str
    spans: str
    precision: Precision
    builder: str
    driver: str
    capability: str

    @classmethod
    def of(cls, network: str, path: Path, precision: Precision, capability: Capability, driver: str) -> PlanKey:
        """The key of the network with the weights at `path` on such a GPU. Raises PlanError, WeightsError."""
        builder = library(capability)
        sources = [*sorted(Path(models.__file__).parent.glob("*.py")), Path(graphs.__file__)]
        return cls(
            network=network,
            weights=weights.fingerprint(path),
            code=hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16],
            spans=json.dumps({name: dataclasses.astuple(span) for name, span in graphs.SPANS.items()}),
            precision=precision,
            builder=f"{builder.__name__} {builder.__version__}",
            driver=driver,
            capability=dotted(capability),
        )

    @property
    def file_name(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.network}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.plan"


def cache_folder(name: str) -> Path:
    """personastream/NAME in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personastream" / name


class PlanCache:
    """Plans in a folder, each file preceded by its digest. Processes may share the folder."""

    def __init__(self, folder: Path | None = None):
        """`folder`: by default personastream/plans in the user's cache."""
        self.folder = folder or cache_folder("plans")

    def find(self, key: PlanKey) -> bytes | None:
        """The plan, or None where it is missing or damaged."""
        path = self.folder / key.file_name
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, plan = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if hashlib.sha256(plan).digest() == digest:
            return plan
        log.warning("%s: a damaged plan; rebuilding it", path)
        return None

    def store(self, key: PlanKey, plan: bytes) -> Path:
        """Write under a temporary name first; returns the file's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / key.file_name
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
            file.write(hashlib.sha256(plan).digest() + plan)
        return Path(file.name).rename(path)


def plan_for(
    network: str,
    path: Path,
    *,
    precision: Precision,
    capability: Capability,
    driver: str,
    cache: PlanCache,
    progress: Progress,
) -> bytes:
    """The plan of a network with the weights at `path`, from the cache or built. Raises PlanError, WeightsError."""
    key = PlanKey.of(network, path, precision, capability, driver)
    plan = cache.find(key)
    if plan is None:
        plan = build_apart(network, path, precision, capability, progress)
        cache.store(key, plan)
    return plan

"""The command `personastream export`: the networks as ONNX files, each compared with torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.backends import graphs
from engine.backends.graphs import Precision
from engine.backends.onnx import parity, write
from engine.errors import ExportError

ALIKE_DB = 50.0  # the least PSNR of a file against torch in float32


@dataclass(frozen=True)
class Exported:
    """A written file.  psnr_db: of its outputs against torch in float32, over their range, the lowest of all outputs
    and batch sizes; infinite where they are equal."""

    network: str
    path: Path
    size_bytes: int
    psnr_db: float


def export_all(folder: Path, precision: Precision = "float32") -> Iterator[Exported]:
    """Write speech.onnx, geometry.onnx and renderer.onnx into `folder`, and compare each with torch.

    Raises ExportError if the extra is missing or a file's outputs differ from torch's; OutputError, WeightsError.
    """
    for name in graphs.NETWORKS:
        graph, reference = graphs.load(name, precision), graphs.load(name, "float32")
        path = folder / f"{name}.onnx"
        write(graph, path)
        psnr_db = min(parity(path, reference, {**graphs.USUAL, "batch": batch}) for batch in (1, 3))
        if psnr_db < ALIKE_DB:
            raise ExportError(f"{path}: {psnr_db:.1f} dB to torch, expected {ALIKE_DB:g}; try --precision float32")
        yield Exported(name, path, path.stat().st_size, psnr_db)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the networks as ONNX files for other runtimes, and show how closely they agree with torch."""

    out: Path
    """The folder of the files; created if it is missing."""
    precision: Precision = "float32"
    """Precision of the renderer; the other networks stay in float32."""

    def run(self) -> int:
        table = Table("file", "MB", "dB to torch", title=f"ONNX, {self.precision}")
        for file in export_all(self.out, self.precision):
            table.add_row(str(file.path), f"{file.size_bytes / 1e6:.1f}", f"{file.psnr_db:.0f}")
        Console().print(table)
        return 0

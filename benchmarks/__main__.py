"""Compare the speed of our renderer with networks of rival classes, on one device. A table, and JSON on request."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import command
from benchmarks.measure import Figure, measure
from benchmarks.rivals import ConvolutionalLips, LatentDecoder, LatentUNet
from engine.backends import graphs
from engine.backends.cuda import cuda_device
from engine.backends.graphs import Precision
from engine.backends.select import describe

NOTE = (
    "Speed only. The rivals are our own networks of the structure, tensor sizes and arithmetic of the class named, "
    "with random weights; their owners' code, weights and engines were not run. A latent painter needs its UNet and "
    "its decoder."
)
OURS = "embedded weights, 112 x 136 px window"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Compare the speed of our renderer with networks of rival classes."""

    device: Literal["cpu", "cuda"] = "cpu"
    batch: tuple[int, ...] = (1, 8)
    seconds: float = 3.0
    """Duration for each network and batch size."""
    threads: int = 1
    """Threads of the CPU."""
    small: bool = False
    """Rivals with narrow channels: a quick trial without meaningful figures."""
    json: Path | None = None
    """File for the figures."""

    def run(self) -> None:
        torch.set_num_threads(self.threads)
        device = torch.device("cpu") if self.device == "cpu" else cuda_device()
        figures = [
            measure(name, what, make, example, batch, device, self.seconds)
            for name, what, make, example in self._contestants(device)
            for batch in self.batch
        ]
        title = f"{describe(device)}, {_precision(device)}" + (", rivals made small" if self.small else "")
        Console().print(_table(figures, title))
        print(NOTE)
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            facts = {
                "device": describe(device),
                "precision": _precision(device),
                "torch": torch.__version__,
                "instruction_set": torch.backends.cpu.get_cpu_capability(),
                "threads": self.threads,
                "small": self.small,
                "note": NOTE,
                "figures": [dataclasses.asdict(figure) for figure in figures],
            }
            self.json.write_text(json.dumps(facts, indent=2) + "\n")

    def _contestants(
        self, device: torch.device
    ) -> Iterator[tuple[str, str, Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]]:
        dtype = getattr(torch, _precision(device))

        def ours() -> nn.Module:
            return graphs.load("renderer", _precision(device))

        reference = graphs.load("renderer", "float32")
        yield "our renderer", OURS, ours, lambda batch: reference.example({**graphs.USUAL, "batch": batch})
        rivals = (
            ("class of Wav2Lip", "convolutions, 256 px", ConvolutionalLips, 4 if self.small else 16),
            ("class of MuseTalk: UNet", "32 x 32 latents, one step", LatentUNet, 32 if self.small else 320),
            ("class of MuseTalk: decoder", "latents to 256 px", LatentDecoder, 32 if self.small else 128),
        )
        for name, what, kind, width in rivals:
            yield (
                name,
                what,
                lambda kind=kind, width=width: kind(width).to(dtype),  # type: ignore[misc]
                lambda batch, kind=kind: tuple(t.to(dtype) for t in kind.example(batch)),  # type: ignore[misc]
            )


def _precision(device: torch.device) -> Precision:
    return "float16" if device.type == "cuda" else "float32"


def _table(figures: list[Figure], title: str) -> Table:
    table = Table("network", "tensors", "M params", "GFLOP", "batch", "ms / frame", "frames / s", title=title)
    for f in figures:
        numbers = (f"{f.million_parameters:.1f}", f"{f.gflop_per_frame:.1f}", str(f.batch))
        table.add_row(f.network, f.what, *numbers, f"{f.ms_per_frame:.2f}", f"{f.frames_per_second:.1f}")
    return table


if __name__ == "__main__":
    command.run(Benchmark, "python -m benchmarks")

"""`python -m training COMMAND`: from a folder of clips to the weights that the engine ships with.

The order: prepare, speak, speech, geometry, renderer, occlusion, evaluate. Every command resumes where it was stopped
and writes to --runs; --install copies the weights into the package that uses them.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler

from engine.errors import PersonaStreamError
from engine.models.weights import default_path


@dataclass(frozen=True, kw_only=True)
class _Command:
    data: Path
    """Folder with manifest.csv and the clips that it lists."""
    runs: Path = Path("runs")
    """Folder for intermediate files, checkpoints and weights."""


@dataclass(frozen=True, kw_only=True)
class Prepare(_Command):
    """Landmarks, sound, fits (with the engine's face model) and crops of every clip."""

    processes: int = 2

    def run(self) -> None:
        from training.data.prepare import prepare

        prepare(self.data, self.runs, processes=self.processes)


@dataclass(frozen=True, kw_only=True)
class Morphable(_Command):
    """Learn the face model from the tracks. Afterwards fits, crops and weights must be computed again."""

    shape_components: int = 50
    expression_components: int = 50
    install: bool = False

    def run(self) -> None:
        from training.geometry.face_model import learn

        target = default_path("face_model") if self.install else self.runs / "face_model.safetensors"
        learn(
            self.data,
            self.runs,
            target,
            shape_components=self.shape_components,
            expression_components=self.expression_components,
        )


@dataclass(frozen=True, kw_only=True)
class Speech(_Command):
    """Train the speech encoder from a teacher, or adopt a public HuBERT unchanged."""

    teacher: Path | None = None
    """ONNX file of a Whisper encoder; the source is in training/speech/teacher.py."""
    checkpoint: str | None = None
    """Instead of a teacher: a public HuBERT by hub name (facebook/hubert-base-ls960) or folder."""
    steps: int = 3900
    install: bool = False

    def run(self) -> None:
        from training.speech.train import adopt, distil

        if (self.teacher is None) == (self.checkpoint is None):
            raise PersonaStreamError("speech needs either --teacher FILE (to distil) or --checkpoint NAME (to adopt)")
        if self.checkpoint is not None:
            weights = adopt(self.checkpoint, self.runs)
        else:
            assert self.teacher is not None
            weights = distil(self.data, self.runs, teacher=self.teacher, steps=self.steps)
        _install(weights, "speech", self.install)


@dataclass(frozen=True, kw_only=True)
class Speak(_Command):
    """Synthesise Kokoro's sentences for training and test. (Training synthesises eSpeak's sentences itself.)"""

    kokoro: Path
    """Folder with kokoro.onnx, config.json and voices; the sources are in training/speech/phonemes.py."""

    def run(self) -> None:
        from training.speech.phonemes import speak_all

        speak_all(self.runs, self.kokoro)


@dataclass(frozen=True, kw_only=True)
class Geometry(_Command):
    """Estimate the clips' audio offsets and train the geometry generator."""

    steps: int = 1000
    share: float = 1.0
    """Share of the training people, for a learning curve. Below 1 the weights go to geometry-PERCENT.safetensors."""
    start: Path | None = None
    """Weights to continue from, trained on the same speech encoder, for instance where data was added."""
    install: bool = False

    def run(self) -> None:
        from training.geometry.train import train

        weights = train(self.data, self.runs, steps=self.steps, share=self.share, start=self.start)
        _install(weights, "geometry", self.install)


@dataclass(frozen=True, kw_only=True)
class Renderer(_Command):
    """Train the dual-attention renderer."""

    steps: int = 3100
    batch: int = 6
    threads: int = 1
    install: bool = False

    def run(self) -> None:
        from training.renderer.train import train

        target = self.runs / "renderer.safetensors"
        train(self.data, self.runs, target, steps=self.steps, batch=self.batch, threads=self.threads)
        _install(target, "renderer", self.install)


@dataclass(frozen=True, kw_only=True)
class Occlusion(_Command):
    """Train the network that detects objects before a mouth."""

    steps: int = 6000
    threads: int = 1
    install: bool = False

    def run(self) -> None:
        from precompute.occlusion import WEIGHTS
        from training.occlusion.train import train

        target = WEIGHTS if self.install else self.runs / WEIGHTS.name
        train(self.data, self.runs, target, steps=self.steps, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Command):
    """Evaluate a stage on the people of the split `val`; writes figures (JSON) and pictures to --out."""

    stage: tyro.conf.Positional[Literal["speech", "geometry", "renderer", "mouths", "dubbing", "occlusion"]]
    out: Path = Path("build/evaluation")
    speech: Path | None = None
    """Weights to evaluate instead of the embedded ones; like `geometry` only for the stages geometry and mouths."""
    geometry: Path | None = None

    def run(self) -> None:
        from training.evaluate import dubbing, geometry, mouths, occlusion, renderer, speech

        if self.stage == "speech":
            report = speech.evaluate(self.data, self.runs, self.out)
        elif self.stage == "geometry":
            report = geometry.evaluate(self.data, self.runs, self.out, speech=self.speech, geometry=self.geometry)
        elif self.stage == "occlusion":
            report = occlusion.evaluate(self.data)
        elif self.stage == "mouths":
            report = mouths.evaluate(self.data, self.runs, self.out, speech=self.speech, geometry=self.geometry)
        elif self.stage == "dubbing":
            report = dubbing.evaluate(self.data, self.runs, self.out)
        else:
            report = renderer.evaluate(self.data, self.runs, self.out)
        Console().print_json(json.dumps(report))


def _install(path: Path, name: str, install: bool) -> None:
    if install:
        shutil.copyfile(path, default_path(name))


COMMANDS = Prepare | Morphable | Speech | Speak | Geometry | Renderer | Occlusion | Evaluate


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        tyro.cli(COMMANDS, prog="python -m training", description=__doc__).run()
    except PersonaStreamError as error:
        Console(stderr=True).print(f"[red]{error}[/red]", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()

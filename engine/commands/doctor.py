"""The command `personastream doctor`: what works on this machine, and remedies for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.backends import graphs
from engine.backends.cpu import CpuBackend
from engine.backends.select import choose, describe
from engine.errors import WeightsError
from engine.live.batching import measure
from engine.models import weights
from engine.models.speech import SpeechConfig

HEADLESS = "opencv-python-headless"


@dataclass(frozen=True)
class Finding:
    """A requirement or an option of the engine.  ok: False if avatars do not work without it.  remedy: also for an
    option that is missing."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Examine the requirements and options of the engine, one by one."""
    yield _python()
    yield _library("av", "decoding and encoding")
    yield _library("aiortc", "WebRTC")
    yield _opencv()
    yield _enrolment()
    backend, networks = _networks()
    yield networks
    yield _licences()
    yield _device()
    yield _sound_devices()
    if backend is not None:
        yield _latency(backend.speech_config)
        yield _speed(backend)


def _python() -> Finding:
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info < (3, 14)
    return Finding("python", supported, version, "" if supported else "install Python 3.11, 3.12 or 3.13")


def _library(name: str, purpose: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, False, f"not installed, needed for {purpose}", "pip install personastream")
    return Finding(name, True, f"{importlib.metadata.version(name)} ({purpose})")


def _opencv() -> Finding:
    """One build of OpenCV: each of them writes the same folder, and those for a desktop need its libGL."""
    builds = {
        name: found.version
        for found in importlib.metadata.distributions()
        if (name := str(found.metadata["Name"])).startswith("opencv-")
    }
    others = " ".join(sorted(builds.keys() - {HEADLESS}))
    release = f"=={builds[HEADLESS]}" if HEADLESS in builds else ""
    remedy = f"keep the build that needs no desktop: pip uninstall -y {others}; " if others else ""
    remedy += f"pip install --force-reinstall --no-deps {HEADLESS}{release}"
    detail = ", ".join(f"{name} {version}" for name, version in sorted(builds.items())) or "not installed"
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        return Finding("opencv", False, f"{detail}: {error}", remedy)
    return Finding("opencv", True, detail, remedy if len(builds) > 1 else "")


def _enrolment() -> Finding:
    """The face tracker, which a runtime for finished avatars does without."""
    if importlib.util.find_spec("mediapipe") is None:
        detail = "mediapipe is not installed: this machine plays avatars, and neither enrols people nor dubs videos"
        return Finding("enrolment", True, detail, "pip install 'personastream[enroll]' (Python 3.11 or 3.12)")
    return Finding("enrolment", True, f"mediapipe {importlib.metadata.version('mediapipe')}")


def _networks() -> tuple[CpuBackend | None, Finding]:
    try:
        backend = CpuBackend.embedded()
        weights.load_face_model()
        paths = [weights.default_path(name) for name in ("face_model", "speech", "geometry", "renderer")]
        detail = ", ".join(f"{path.stem} {path.stat().st_size / 1e6:.1f} MB" for path in paths)
    except (WeightsError, OSError) as error:
        remedy = "reinstall the package, or train them with `python -m training`"
        return None, Finding("networks", False, str(error), remedy)
    return backend, Finding("networks", True, detail)


def _licences() -> Finding:
    return Finding(
        "licences",
        True,
        f"code Apache-2.0, weights {weights.LICENCE}",
        "for other uses train them again, with `python -m training`",
    )


def _latency(speech: SpeechConfig) -> Finding:
    return Finding(
        "latency",
        speech.algorithmic_latency_ms <= 280,
        f"{speech.algorithmic_latency_ms} ms of speech for the first frame "
        f"(step {speech.step_frames}, lookahead {speech.lookahead_frames} frames)",
        "make WindowConfig's step or lookahead shorter and train again",
    )


def _speed(backend: CpuBackend) -> Finding:
    """The times of the networks on this processor, from which servers choose the quality of the pictures."""
    renderer = graphs.load("renderer", "float32").eval()
    example = renderer.example({**graphs.USUAL, "batch": 1})
    window = torch.zeros(1, backend.speech_config.window_samples)
    with torch.inference_mode():
        picture_s, step_s = (
            measure(run, (1,))[1] for run in (lambda _: renderer(*example), lambda _: backend.encode_speech(window))
        )
    detail = (
        f"{1000 * picture_s:.0f} ms for the network of a picture (256 px), {1000 * step_s:.0f} ms for a speech step, "
        f"on each of {backend.workers} workers; `serve` measures its avatars, chooses the quality and logs why"
    )
    return Finding("speed", True, detail)


def _device() -> Finding:
    """The device that `--device auto` takes."""
    choice = choose("auto")
    detail = f"{describe(choice.device)}: {choice.reason}"
    return Finding("device", True, detail, "see docs/gpu.md, or choose with --device" if choice.fallback else "")


def _sound_devices() -> Finding:
    """Microphones and loudspeakers, for `personastream mic`; a server needs none."""
    try:
        devices = importlib.import_module("sounddevice").query_devices()
    except ModuleNotFoundError:
        return Finding("sound devices", True, "sounddevice is not installed", "pip install personastream[local]")
    except OSError as error:  # the package is installed, the library that it loads is not
        return Finding("sound devices", True, str(error), "install PortAudio (Debian: apt-get install libportaudio2)")
    listed = [
        f"{number}: {device['name']} ({device['max_input_channels']} in, {device['max_output_channels']} out)"
        for number, device in enumerate(devices)
    ]
    remedy = "" if listed else "plug one in, or give `personastream mic --source`"
    return Finding("sound devices", True, "\n".join(listed) or "none on this machine", remedy)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show what works on this machine, and remedies for the rest."""

    def run(self) -> int:
        findings = list(examine())
        table = Table("", "what", "found", "to do")
        for finding in findings:
            table.add_row(
                "ok" if finding.ok else "[red]no", finding.name, escape(finding.detail), escape(finding.remedy)
            )
        Console().print(table)
        return 0 if all(finding.ok for finding in findings) else 1

"""The bundled speech samples: a folder of WAV files, listed once."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

from engine.errors import MediaError


@dataclass(frozen=True)
class Sample:
    """One WAV file that the page offers to play through the avatar."""

    name: str
    path: Path
    duration_s: float


def list_samples(folder: Path | None) -> dict[str, Sample]:
    """The samples of a folder by name; MediaError names a file that is no PCM WAV."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise MediaError(f"{folder}: not a folder; expected a folder of WAV files for --samples")
    return {path.stem: _read_sample(path) for path in sorted(folder.glob("*.wav"))}


def _read_sample(path: Path) -> Sample:
    try:
        with wave.open(str(path)) as sound:
            return Sample(path.stem, path, sound.getnframes() / sound.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise MediaError(f"{path}: no PCM WAV file ({error}); convert it, or take it out of the folder") from error

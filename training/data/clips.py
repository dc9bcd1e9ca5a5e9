"""The clips of a data folder, and their tracks, fits and crops in the folder of runs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.errors import MediaError
from precompute.fit import FaceFit

COLUMNS = ("file", "kind", "identity", "split", "source", "language", "duration_s", "face_px")
FITTED = "fitted"
FIT_COLUMNS = ("file", "sound", "identity", "split", "language", "duration_s", "face_px")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of `manifest.csv`, which has the columns COLUMNS, or of `fits.csv`, which has the columns FIT_COLUMNS.

    `path`: the column `file`, relative to the table's folder; `kind`: real, generated, real_silent, or fitted for a
    row of `fits.csv`, a fit without pictures; `identity`: any name for the person; `split`: train or val, the same for
    all clips of a person; `source`: any name for the collection; `language`: any code; `duration_s`: seconds;
    `face_px`: height of the face in whole pixels; `sound`: the sound of a fit, elsewhere None.
    """

    path: Path
    kind: str
    identity: str
    split: str
    source: str
    language: str
    duration_s: float
    face_px: int
    sound: Path | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def read_manifest(data: Path) -> list[Clip]:
    """The clips in `data`/manifest.csv. Raises MediaError for a missing file, column or number."""
    table = data / "manifest.csv"
    if not table.is_file():
        raise MediaError(f"{table}: not found; give --data a folder with manifest.csv and the clips it lists")
    return [_clip(data, row, place) for row, place in _rows(table, COLUMNS)]


def read_fits(data: Path) -> list[Clip]:
    """The fits without pictures in `data`/fits.csv; none where there is no such file. Raises as `read_manifest`."""
    table = data / "fits.csv"
    return [_clip(data, _as_clip(row), place) for row, place in _rows(table, FIT_COLUMNS)] if table.is_file() else []


def read_all(data: Path) -> list[Clip]:
    """Clips and fits. Raises as `read_manifest`."""
    return [*read_manifest(data), *read_fits(data)]


def _rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """The rows of a table that has these columns, each with its place for messages."""
    with table.open(newline="") as lines:
        reader = csv.DictReader(lines)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise MediaError(f"{table}: lacks the column {', '.join(missing)}; expected {', '.join(columns)}")
        for row in reader:
            place = f"{table}, line {reader.line_num}"
            if short := [name for name in columns if row[name] is None]:
                raise MediaError(f"{place}: has no {', '.join(short)}; expected {', '.join(columns)}")
            yield row, place


def _as_clip(row: dict[str, str]) -> dict[str, str]:
    """A row of fits.csv as one of the manifest. Recordings of a person share their offset, so they are one source."""
    return {**row, "kind": FITTED, "source": row["identity"]}


def _clip(data: Path, row: dict[str, str], place: str) -> Clip:
    try:
        duration_s, face_px = float(row["duration_s"]), int(row["face_px"])
    except ValueError as error:
        raise MediaError(f"{place}: {error}; expected seconds in duration_s and whole pixels in face_px") from error
    return Clip(
        path=data / row["file"],
        kind=row["kind"],
        identity=row["identity"],
        split=row["split"],
        source=row["source"],
        language=row["language"],
        duration_s=duration_s,
        face_px=face_px,
        sound=data / row["sound"] if row["kind"] == FITTED else None,
    )


@dataclass(frozen=True)
class Track:
    """A tracked clip: `points` [T, 478, 3] float32 frame pixels (NaN where no face), `pcm` [N] int16 at 16 kHz."""

    points: np.ndarray
    pcm: np.ndarray

    @property
    def tracked(self) -> np.ndarray:
        return ~np.isnan(self.points[:, 0, 0])


def track_path(runs: Path, clip: Clip) -> Path:
    return runs / "tracks" / f"{clip.name}.safetensors"


def save_track(path: Path, track: Track) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{path.name}.tmp")
    save_file({"points": track.points, "pcm": track.pcm}, temporary)
    temporary.rename(path)


def load_track(path: Path) -> Track:
    if not path.is_file():
        raise MediaError(f"{path}: not found; run `python -m training prepare` first")
    tensors = load_file(path)
    return Track(tensors["points"], tensors["pcm"])


def fit_path(runs: Path, clip: Clip) -> Path:
    return runs / "fits" / f"{clip.name}.safetensors"


def crops_path(runs: Path, clip: Clip) -> Path:
    return runs / "crops" / f"{clip.name}.safetensors"


def save_crops(path: Path, crops: np.ndarray, index: np.ndarray) -> None:
    """Write crops [n, 256, 256, 3] uint8 and their rows in the clip's fit, index [n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({"crops": crops, "index": index}, temporary)
    temporary.rename(path)


def save_fit(path: Path, fit: FaceFit, start: int) -> None:
    """Write the fit of a stretch that begins at frame `start` of the clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{path.name}.tmp")
    save_file({**vars(fit), "start": np.array([start])}, temporary)
    temporary.rename(path)


def load_fit(path: Path) -> tuple[FaceFit, int]:
    """The fit of a clip's longest tracked stretch and the frame at which it starts."""
    if not path.is_file():
        raise MediaError(f"{path}: not found; run `python -m training prepare` first")
    tensors = load_file(path)
    start = int(tensors.pop("start")[0])
    return FaceFit(**tensors), start

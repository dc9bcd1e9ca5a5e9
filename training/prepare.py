"""Track every clip once: landmarks and 16 kHz sound, one file a clip, skipping what is already there."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track as progress

from engine.errors import MediaError
from engine.models.morphable import load_face_model
from precompute.fit import fit
from precompute.track import fill_gaps, longest_run, track
from precompute.video import read_audio, read_frames
from training.data import Clip, Track, fit_path, load_track, read_manifest, save_fit, save_track, track_path

MIN_FRAMES = 15

log = logging.getLogger(__name__)


def _prepare_clip(clip: Clip, target: Path) -> str | None:
    """Track one clip; the reason if it cannot be used."""
    try:
        landmarks = track(read_frames(clip.path))
        sound = None if clip.kind == "real_silent" else read_audio(clip.path, 16_000)
    except MediaError as error:
        return str(error)
    pcm = np.zeros(0, np.int16) if sound is None else (np.clip(sound, -1, 1) * 32767).astype(np.int16)
    save_track(target, Track(landmarks.points, pcm))
    return None


def _fit_clip(source: Path, target: Path) -> str | None:
    """Fit the face model to one tracked clip; the reason if it cannot be used."""
    torch.set_num_threads(1)
    track = load_track(source)
    run = longest_run(track.found)
    if run.stop - run.start < MIN_FRAMES:
        return f"only {run.stop - run.start} frames in a row show a face; expected {MIN_FRAMES}"
    save_fit(target, fit(fill_gaps(track.points[run]), load_face_model()), run.start)
    return None


def fit_tracks(data: Path, runs: Path, *, processes: int) -> None:
    """Write `runs/fits/*.safetensors` for all tracked clips; resumes where it was stopped."""
    todo = [(track_path(runs, clip), fit_path(runs, clip)) for clip in read_manifest(data)]
    todo = [(source, target) for source, target in todo if source.exists() and not target.exists()]
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_fit_clip, source, target) for source, target in todo]
        for (source, _), job in zip(todo, progress(jobs, "fitting"), strict=True):
            if problem := job.result():
                log.warning("%s left out: %s", source.stem, problem)


def prepare(data: Path, runs: Path, *, processes: int) -> None:
    """Write `runs/tracks/*.safetensors` for all clips of the manifest; resumes where it was stopped."""
    todo = [(clip, track_path(runs, clip)) for clip in read_manifest(data)]
    todo = [(clip, target) for clip, target in todo if not target.exists()]
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_prepare_clip, clip, target) for clip, target in todo]
        for (clip, _), job in zip(todo, progress(jobs, "tracking"), strict=True):
            if problem := job.result():
                log.warning("%s left out: %s", clip.name, problem)

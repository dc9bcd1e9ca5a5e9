"""Preparation, once per clip: landmarks with 16 kHz sound, the fit, and crops for the renderer."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track as progress
from safetensors import SafetensorError
from safetensors.numpy import load_file

from engine.errors import MediaError, PersonaStreamError
from engine.models.speech import FRAME_SAMPLES, RATE_HZ
from engine.models.weights import load_face_model
from engine.paint.composite import cut
from engine.sound_file import SoundFile
from precompute.fit import FaceFit, fit
from precompute.track import fill_gaps, longest_run, track
from precompute.video import read_audio, read_frames
from training.data.clips import (
    Clip,
    Track,
    crops_path,
    fit_path,
    load_fit,
    load_track,
    read_fits,
    read_manifest,
    save_crops,
    save_fit,
    save_track,
    track_path,
)

MIN_FRAMES = 15
MIN_FACE_PX = 100  # training on smaller faces makes the renderer blur
STRETCH_FRAMES = 24
FRAMES_PER_CLIP = 96
FRAMES_PER_IDENTITY = 144

log = logging.getLogger(__name__)


def _prepare_clip(clip: Clip, target: Path) -> str | None:
    """Track one clip; returns the reason if it cannot be used, or None."""
    try:
        landmarks = track(read_frames(clip.path))
        sound = None if clip.kind == "real_silent" else read_audio(clip.path, 16_000)
    except MediaError as error:
        return str(error)
    pcm = np.zeros(0, np.int16) if sound is None else (np.clip(sound, -1, 1) * 32767).astype(np.int16)
    save_track(target, Track(landmarks.points, pcm))
    return None


def _fit_clip(source: Path, target: Path) -> str | None:
    """Fit the face model to one tracked clip; returns the reason if it cannot be used, or None."""
    torch.set_num_threads(1)
    track = load_track(source)
    stretch = longest_run(track.tracked)
    if stretch.stop - stretch.start < MIN_FRAMES:
        return f"only {stretch.stop - stretch.start} frames in a row show a face; expected {MIN_FRAMES}"
    save_fit(target, fit(fill_gaps(track.points[stretch]), load_face_model()), stretch.start)
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


def _crop_frames(count: int, limit: int) -> np.ndarray:
    """The frames to keep of `count`: all, or stretches of STRETCH_FRAMES spread evenly, about `limit` frames."""
    if count <= limit:
        return np.arange(count)
    stretches = max(1, limit // STRETCH_FRAMES)
    starts = np.linspace(0, count - STRETCH_FRAMES, stretches).astype(int)
    return np.unique(starts[:, None] + np.arange(STRETCH_FRAMES))


def _crop_clip(clip: Clip, fit_file: Path, target: Path, limit: int) -> None:
    face, start = load_fit(fit_file)
    index = _crop_frames(len(face.crop), limit)
    keep = set((start + index).tolist())
    crops = [cut(image, face.crop[n - start]) for n, image in enumerate(read_frames(clip.path)) if n in keep]
    save_crops(target, np.stack(crops), index[: len(crops)])


def cut_crops(data: Path, runs: Path, *, processes: int) -> None:
    """Write `runs/crops/*.safetensors` for the renderer: stretches of frames of every person; resumes."""
    budget: dict[str, int] = {}
    jobs = []
    with ProcessPoolExecutor(processes) as pool:
        for clip in sorted(read_manifest(data), key=lambda clip: -clip.duration_s):
            source, target = fit_path(runs, clip), crops_path(runs, clip)
            left = budget.get(clip.identity, FRAMES_PER_IDENTITY)
            if not source.exists() or clip.face_px < MIN_FACE_PX or left < STRETCH_FRAMES:
                continue
            limit = min(left, FRAMES_PER_CLIP)
            budget[clip.identity] = left - min(limit, int(clip.duration_s * 25))
            if not target.exists():
                jobs.append(pool.submit(_crop_clip, clip, source, target, limit))
        for job in progress(jobs, "cutting crops"):
            job.result()


def adopt_fits(data: Path, runs: Path) -> None:
    """Write the sound and the fit of every row of fits.csv as those of a tracked clip; resumes.

    A file holds alpha [K_s], beta [T, K_e] and pose [T, 6] under the engine's face model, lip_error_px [T], and
    sound_start [1], the sample at 16 kHz at which the first frame begins.
    """
    for clip in read_fits(data):
        if fit_path(runs, clip).exists():
            continue
        assert clip.sound is not None
        try:
            sound = np.concatenate(list(SoundFile(clip.sound).blocks(RATE_HZ)))
            tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(clip.path).items()}
        except (PersonaStreamError, OSError, SafetensorError) as error:
            log.warning("%s left out: %s", clip.name, error)
            continue
        begin, frames = int(tensors["sound_start"][0]), len(tensors["beta"])
        pcm = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        # A whole number of frames before the first one.
        save_track(track_path(runs, clip), Track(np.zeros((0, 478, 3), np.float32), pcm[begin % FRAME_SAMPLES :]))
        fit = FaceFit(
            alpha=np.tile(tensors["alpha"], (frames, 1)),
            beta=tensors["beta"],
            pose=tensors["pose"],
            crop=np.zeros((frames, 3), np.int32),  # there are no pictures
            error_px=tensors["lip_error_px"],
            lip_error_px=tensors["lip_error_px"],
        )
        save_fit(fit_path(runs, clip), fit, begin // FRAME_SAMPLES)


def prepare(data: Path, runs: Path, *, processes: int) -> None:
    """Write tracks, fits and crops of all clips; resumes where it was stopped."""
    adopt_fits(data, runs)
    track_clips(data, runs, processes=processes)
    fit_tracks(data, runs, processes=processes)
    cut_crops(data, runs, processes=processes)


def track_clips(data: Path, runs: Path, *, processes: int) -> None:
    """Write `runs/tracks/*.safetensors` for all clips of the manifest; resumes where it was stopped."""
    todo = [(clip, track_path(runs, clip)) for clip in read_manifest(data)]
    todo = [(clip, target) for clip, target in todo if not target.exists()]
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_prepare_clip, clip, target) for clip, target in todo]
        for (clip, _), job in zip(todo, progress(jobs, "tracking"), strict=True):
            if problem := job.result():
                log.warning("%s left out: %s", clip.name, problem)

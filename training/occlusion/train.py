"""Train the network that detects objects before a mouth (`precompute.occlusion`), from clips and drawn objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track as progress
from safetensors.numpy import load_file, save_file
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from engine.models.weights import save
from precompute.occlusion import CELL_PX, PATCH_PX, OcclusionConfig, OcclusionNetwork, layout, mouth_patch
from precompute.video import read_frames
from training.data.clips import Clip, load_track, read_manifest, track_path
from training.occlusion.samples import Sources, sample

CLIP_PATCHES, PERSON_PATCHES = 60, 120
CLIP_TEXTURES = 6
BATCH = 48
LEARNING_RATE = 4e-3
COVERED_CLIPS = frozenset(
    {"p001_002", "p033_001", "p085_001", "p086_001", "p225_001", "s029", "s045", "s048", "s050", "s058", "s059", "s061"}
)  # hands, a mug, a rose, a sandwich, a visor, a written word, and meshes on what is no face: seen by eye

log = logging.getLogger(__name__)


def _patches(clip: Clip, runs: Path) -> dict[str, np.ndarray]:
    """`patches` [n, 64, 64, 3] of the clip's mouth and `textures` [m, 64, 64, 3] from anywhere; cached."""
    path = runs / "patches" / f"{clip.name}.safetensors"
    if path.is_file():
        return load_file(path)
    rng = np.random.default_rng(0)
    track = load_track(track_path(runs, clip))
    frames = np.flatnonzero(track.tracked)
    chosen = set(rng.permutation(frames)[:CLIP_PATCHES].tolist())
    patches, textures = [], []
    for number, image in enumerate(read_frames(clip.path)):
        if number == 0:
            textures = [_piece(rng, image) for _ in range(CLIP_TEXTURES)]
        if number in chosen:
            patches.append(mouth_patch(image, track.points[number]))
    shape = (-1, PATCH_PX, PATCH_PX, 3)
    arrays = {name: np.array(a, np.uint8).reshape(shape) for name, a in (("patches", patches), ("textures", textures))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    return arrays


def _piece(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A square from anywhere in image [H, W, 3], scaled to a patch."""
    side = int(min(image.shape[:2]) * rng.uniform(0.15, 0.4))
    top, left = (rng.integers(0, length - side + 1) for length in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return cv2.resize(part, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA)


def gather(data: Path, runs: Path) -> Sources:
    """The patches of all tracked clips of training people, at most PERSON_PATCHES of each."""
    people: dict[str, list[np.ndarray]] = {}
    textures: dict[str, np.ndarray] = {}
    clips = [clip for clip in read_manifest(data) if clip.split != "val" and clip.name not in COVERED_CLIPS]
    for clip in progress(clips, "patches"):
        person = clip.identity or clip.name
        if not track_path(runs, clip).is_file() or sum(map(len, people.get(person, []))) >= PERSON_PATCHES:
            continue
        arrays = _patches(clip, runs)
        if len(arrays["patches"]):
            people.setdefault(person, []).append(arrays["patches"])
            textures.setdefault(person, arrays["textures"])
    return Sources(
        people=[np.concatenate(parts)[:PERSON_PATCHES] for parts in people.values()],
        textures=np.concatenate(list(textures.values())),
    )


def _batches(sources: Sources, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Patches [B, 64, 64, 3] uint8 and how much of each cell is covered, [B, 8, 8]."""
    rng = np.random.default_rng(seed)
    while True:
        images, covered = zip(*(sample(rng, sources) for _ in range(BATCH)), strict=True)
        yield torch.from_numpy(np.stack(images)), avg_pool2d(torch.from_numpy(np.stack(covered)), CELL_PX)


def train(data: Path, runs: Path, target: Path, *, steps: int, threads: int = 1) -> None:
    """Write the weights to `target`. Needs the tracks of `python -m training prepare`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sources = gather(data, runs)
    network = OcclusionNetwork(OcclusionConfig())
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
    face = avg_pool2d(torch.from_numpy(layout().face)[None].float(), CELL_PX)[0]
    start, mean = time.perf_counter(), 0.0
    for step, (patches, covered) in zip(range(1, steps + 1), _batches(sources, seed=0), strict=False):
        errors = binary_cross_entropy_with_logits(network(patches), covered, reduction="none")
        loss = (errors * face).sum() / (face.sum() * len(errors))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step, 100)
        if step % 100 == 0:
            log.info("step %d of %d: loss %.3f, %.0f s", step, steps, mean, time.perf_counter() - start)
    facts = {"people": str(len(sources.people)), "steps": str(steps), "loss": f"{mean:.3f}"}
    save(network, target, facts=facts)

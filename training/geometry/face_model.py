"""Learn the face model: PCA of shape over people and of expression over frames, after rigid alignment."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import torch

from engine.models.morphable import (
    FACE_OVAL,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE,
    RIGID,
    VERTICES,
    MorphableModel,
)
from training.data.clips import load_track, read_manifest, track_path

log = logging.getLogger(__name__)

LIP_WEIGHT = 3.0  # lips are a tenth of the vertices, and viewers look at them most
FRAMES_PER_CLIP = 40
FRAMES_PER_IDENTITY = 400


def _tessellation() -> np.ndarray:
    """Triangles [F, 3] of the face mesh: the 3-cliques of the edges that MediaPipe publishes."""
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_TESSELATION

    neighbours: dict[int, set[int]] = {}
    for a, b in FACEMESH_TESSELATION:
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    cliques = {
        tuple(sorted((a, b, c)))
        for a in neighbours
        for b, c in itertools.combinations(sorted(neighbours[a]), 2)
        if c in neighbours[b]
    }
    return np.array(sorted(cliques), np.int64)


def _cap(loop: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Triangles that close an opening. Its `loop` runs along the upper edge and back along the lower one."""
    half = len(loop) // 2
    upper, lower = loop[: half + 1], (loop[0], *reversed(loop[half + 1 :]), loop[half])
    strips = []
    for i in range(half):
        if i > 0:
            strips.append((upper[i], lower[i], upper[i + 1]))
        if i < half - 1:
            strips.append((lower[i], lower[i + 1], upper[i + 1]))
    return strips


def _colour_codes(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles with caps [F, 3] and the colours of their corners [F, 3, 3], in [0, 1].

    The colour of skin is its normalised mean position, with blue in [0.25, 1] (PNCC of Zhu et al. 2017). In the mouth
    and the eyes red is the position along the opening, green 0 at its upper and 1 at its lower edge, blue 0 or 0.12.
    """
    low, high = mean.min(0), mean.max(0)
    skin = (mean - low) / (high - low)
    skin[:, 2] = 0.25 + 0.75 * skin[:, 2]
    triangles = _tessellation()
    codes = [skin[triangles]]
    extra: list[tuple[int, int, int]] = []
    for loop, blue in ((LIPS_INNER, 0.0), (RIGHT_EYE, 0.12), (LEFT_EYE, 0.12)):
        half = len(loop) // 2
        strips = _cap(loop)
        along = np.array(
            [(mean[i, 0] - mean[list(loop), 0].min()) / np.ptp(mean[list(loop), 0]) for i in range(VERTICES)]
        )
        lower = set(loop[half + 1 :])
        corner = np.array([[(along[i], float(i in lower), blue) for i in strip] for strip in strips])
        codes.append(corner)
        extra += strips
    return np.concatenate([triangles, np.array(extra, np.int64)]), np.concatenate(codes).clip(0, 1)


def _align(points: np.ndarray, target: np.ndarray, index: tuple[int, ...] | None = None) -> np.ndarray:
    """Similarity-align points [T, V, 3] to target [V, 3] on the points `index` (Umeyama 1991)."""
    chosen = slice(None) if index is None else list(index)
    source, goal = points[:, chosen], target[chosen]
    centre, goal_centre = source.mean(1, keepdims=True), goal.mean(0)
    a, b = source - centre, goal - goal_centre
    u, s, vt = np.linalg.svd(np.einsum("vi,tvj->tij", b, a))
    sign = np.ones((len(points), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    scale = (s * sign).sum(-1) / (a**2).sum((1, 2))
    return scale[:, None, None] * np.einsum("tij,tvj->tvi", rotation, points - centre) + goal_centre


def _sample(data: Path, runs: Path) -> dict[str, np.ndarray]:
    """Frames [T, V, 3] of every training identity, at most FRAMES_PER_IDENTITY of each."""
    people: dict[str, list[np.ndarray]] = {}
    for clip in read_manifest(data):
        path = track_path(runs, clip)
        if clip.split != "train" or not path.exists():
            continue
        points = load_track(path).points[:, :VERTICES]
        points = points[~np.isnan(points[:, 0, 0])]
        if len(points) >= 10 and np.median(np.ptp(points[:, :, 1], axis=1)) > 70:
            pick = np.linspace(0, len(points) - 1, min(len(points), FRAMES_PER_CLIP)).astype(int)
            people.setdefault(clip.identity, []).append(points[pick])
    return {name: np.concatenate(parts)[:FRAMES_PER_IDENTITY] for name, parts in people.items()}


def _mean_face(people: dict[str, np.ndarray]) -> np.ndarray:
    """Generalised Procrustes mean [V, 3] of the people's mean faces, facing the camera, outer eye corners 1 apart."""
    mean = next(iter(people.values()))[0]
    for _ in range(5):
        mean = np.mean([_align(frames, mean, RIGID).mean(0) for frames in people.values()], axis=0)
        eyes = mean[263] - mean[33]
        yaw = np.arctan2(eyes[2], eyes[0])  # the mean of many heads may not face the camera
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        mean = (mean - mean[list(RIGID)].mean(0)) @ turn.T / np.linalg.norm(eyes)
    return mean


def _pca(rows: np.ndarray, weight: np.ndarray, components: int) -> np.ndarray:
    """Basis [K, V, 3] scaled by standard deviation, from rows [T, V, 3] with vertex weights [V]."""
    flat = (rows * weight[:, None]).reshape(len(rows), -1)
    _, s, vt = np.linalg.svd(flat, full_matrices=False)
    basis = vt[:components] * (s[:components, None] / np.sqrt(len(rows)))
    return basis.reshape(-1, VERTICES, 3) / weight[:, None]


def learn(data: Path, runs: Path, target: Path, *, shape_components: int, expression_components: int) -> None:
    """Write the face model to `target` and log how much of the training variance it keeps."""
    people = _sample(data, runs)
    mean = _mean_face(people)
    aligned = {name: _align(frames, mean, RIGID) for name, frames in people.items()}
    shapes = np.stack([frames.mean(0) for frames in aligned.values()])
    residuals = np.concatenate([frames - frames.mean(0) for frames in aligned.values()])
    weight = np.ones(VERTICES)
    weight[list({*LIPS_OUTER, *LIPS_INNER})] = LIP_WEIGHT
    shape_basis = _pca(shapes - mean, weight, shape_components)
    expression_basis = _pca(residuals, weight, expression_components)
    for name, rows, basis in (("shape", shapes - mean, shape_basis), ("expression", residuals, expression_basis)):
        kept = (basis**2).sum() / ((rows**2).sum() / len(rows))
        log.info("%s: %d components keep %.1f %% of the variance", name, len(basis), 100 * kept)
    triangles, codes = _colour_codes(mean)
    nose_base = mean[2, 1]
    lower = mean[:, 1] > nose_base
    upper_ring = [
        i for i in FACE_OVAL if mean[i, 1] < mean[61, 1]
    ]  # the cheeks at the ears move with the head, not with the jaw
    lower[upper_ring] = False
    target.parent.mkdir(parents=True, exist_ok=True)
    MorphableModel(
        mean=torch.tensor(mean, dtype=torch.float32),
        shape_basis=torch.tensor(shape_basis, dtype=torch.float32),
        expression_basis=torch.tensor(expression_basis, dtype=torch.float32),
        triangles=torch.tensor(triangles),
        codes=torch.tensor(codes, dtype=torch.float32),
        lower=torch.tensor(lower),
    ).save(target)
    log.info("%d people, %d frames, %d triangles -> %s", len(people), len(residuals), len(triangles), target)

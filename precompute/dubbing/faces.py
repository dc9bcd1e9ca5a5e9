"""The first pass of dubbing: the landmarks of every face in every picture, and the shots and tracks that follow.

Landmarks go to a file: an hour of two faces would take a gigabyte of memory. What follows needs a shot at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from precompute.dubbing.ahead import ahead
from precompute.dubbing.source import Source, Times
from precompute.identity import Identity
from precompute.occlusion import Occlusion
from precompute.scan import THUMBNAIL, colours, face_height, is_apart, sharpness_and_brightness
from precompute.shots import CUT_CHANGE, SUDDEN_LEVELS, cuts
from precompute.track import POINTS, FaceTracker

MAX_FACES = 4
IDENTITY_S = 0.8  # between two looks at who it is; one takes as long as three pictures of the scan
SETTLED = 2  # pictures after a cut, before which a face is not looked at
LOST_S = 0.4  # for which a track outlives its face
NEAR = 0.5  # face heights that a face may move from picture to picture

READ_AHEAD = 4  # pictures

LANDMARKS, TIMES, MEASURES = "landmarks.f32", "times.npz", "faces.npz"


@dataclass(frozen=True)
class Faces:
    """What the first pass has found in P pictures with R faces.

    points [R, 478, 3] float32: landmarks in upright pixels of the source, on disk.  picture [R] int: where each face
    is, in order.  sharpness [R]: variance of the Laplacian.  covered [R]: share of the lips behind an object.
    embedding [E, 128] of the faces `embedded` [E].  times: of the pictures.  shots: slices of the pictures.
    """

    points: np.ndarray
    picture: np.ndarray
    sharpness: np.ndarray
    covered: np.ndarray
    embedded: np.ndarray
    embedding: np.ndarray
    times: Times
    shots: tuple[slice, ...]

    @property
    def rate_hz(self) -> float:
        """Pictures a second, on average."""
        return rate_hz(self.times)

    def seconds(self, pictures: slice) -> np.ndarray:
        """The times of these pictures."""
        seconds: np.ndarray = self.times.ticks[pictures] * float(self.times.time_base)
        return seconds


@dataclass(frozen=True)
class Track:
    """One face through one shot: its rows in `Faces`, in order. Some pictures may be missing."""

    shot: int
    rows: np.ndarray


def rate_hz(times: Times) -> float:
    """Pictures a second, on average."""
    return len(times) / float(times.duration_s)


def scan(
    source: Source, size: tuple[int, int], folder: Path, on_picture: Callable[[int], None] = lambda _: None
) -> Faces:
    """Find the faces in all pictures, scaled to `size` (width, height), and keep what is found in `folder`.

    Raises WeightsError without the network of identities, CorruptVideoError.
    """
    identity = Identity()
    occlusion = Occlusion()
    rows: list[tuple[int, float, float]] = []
    measures: list[tuple[float, float]] = []
    embedded: dict[int, np.ndarray] = {}
    every, look_at = max(1, round(IDENTITY_S * source.rate)), SETTLED
    before: tuple[np.ndarray, np.ndarray] | None = None
    to_source = np.array([source.upright_size[i] / size[i] for i in (0, 1, 0)], np.float32)
    with FaceTracker(max_faces=MAX_FACES) as tracker, (folder / LANDMARKS).open("wb") as file:
        for number, image in ahead(_scaled(source, size), READ_AHEAD):
            small = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA)
            grey, share = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), colours(small)
            change = 0.0 if before is None else float(np.abs(share - before[1]).sum() / 2)
            motion = 0.0 if before is None else float(np.abs(grey - before[0]).mean())
            before = grey, share
            if change > CUT_CHANGE / 2 or motion > 2 * SUDDEN_LEVELS:
                look_at = number + SETTLED
            for face in _distinct(tracker.detect(image)):
                if number % every == 0 or number == look_at:
                    embedded[len(rows)] = identity.embed(image, face)
                rows.append((number, sharpness_and_brightness(image, face)[0], occlusion.share(image, face)))
                (face * to_source).astype(np.float32).tofile(file)
            measures.append((change, motion))
            on_picture(number + 1)
    table = np.array(rows, np.float64).reshape(-1, 3)
    assert source.times is not None
    source.times.save(folder / TIMES)
    np.savez(
        folder / MEASURES,
        picture=table[:, 0].astype(np.int64),
        sharpness=table[:, 1].astype(np.float32),
        covered=table[:, 2].astype(np.float32),
        embedded=np.array(list(embedded), np.int64),
        embedding=np.array(list(embedded.values()), np.float32).reshape(-1, 128),
        measures=np.array(measures, np.float32).reshape(-1, 2),
    )
    return load(folder)


def _scaled(source: Source, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    for picture in source.pictures():
        yield picture.number, picture.scaled(size)


def is_complete(folder: Path) -> bool:
    """Whether an earlier `scan` in `folder` has come to its end."""
    return (folder / MEASURES).exists()


def load(folder: Path) -> Faces:
    """The result of an earlier `scan` in `folder`."""
    with np.load(folder / MEASURES, allow_pickle=False) as stored:
        picture, sharpness, covered, embedded, embedding, measures = (
            stored[name] for name in ("picture", "sharpness", "covered", "embedded", "embedding", "measures")
        )
    times = Times.load(folder / TIMES)
    shape = (len(picture), POINTS, 3)
    points = np.memmap(folder / LANDMARKS, np.float32, "r", shape=shape) if len(picture) else np.zeros(shape)
    return Faces(
        points=points,
        picture=picture,
        sharpness=sharpness,
        covered=covered,
        embedded=embedded,
        embedding=embedding,
        times=times,
        shots=find_shots(measures, picture, points, rate_hz(times)),
    )


def _distinct(faces: list[np.ndarray]) -> list[np.ndarray]:
    """Without meshes that lie on the face of a larger one."""
    kept: list[np.ndarray] = []
    for face in faces:
        if all(is_apart(face, other) for other in kept):
            kept.append(face)
    return kept


def find_shots(measures: np.ndarray, picture: np.ndarray, points: np.ndarray, rate_hz: float) -> tuple[slice, ...]:
    """Shots of P pictures, cut where the colours of the whole picture change, or where picture and largest face jump
    together.

    measures [P, 2]: share of colours that change, and mean motion of a thumbnail in grey levels.
    """
    total = len(measures)
    first = np.flatnonzero(np.r_[True, np.diff(picture) > 0]) if len(picture) else np.zeros(0, int)
    centre, height = np.full((total, 2), np.nan), np.full(total, np.nan)
    for row in first:  # the largest face of its picture
        mesh = points[row]
        centre[picture[row]], height[picture[row]] = mesh[:, :2].mean(0), face_height(mesh)
    begins = cuts(measures[:, 0], measures[:, 1], centre, height, rate_hz)
    edges = sorted({0, total, *map(int, begins)})
    return tuple(slice(a, b) for a, b in pairwise(edges))


def tracks(faces: Faces) -> list[Track]:
    """Every face followed through its shot, by its place and size."""
    patience = max(1, round(LOST_S * faces.rate_hz))
    bounds = np.searchsorted(faces.picture, [shot.start for shot in faces.shots] + [len(faces.times)])
    found: list[Track] = []
    for shot, (start, stop) in enumerate(pairwise(bounds)):
        open_rows: list[list[int]] = []
        edges = start + np.flatnonzero(np.r_[True, np.diff(faces.picture[start:stop]) > 0, True])
        for first, last in pairwise(edges if stop > start else []):
            alive = [track for track in open_rows if faces.picture[first] - faces.picture[track[-1]] <= patience]
            for row, track in _matched(faces.points, np.arange(first, last), alive):
                if track is None:
                    open_rows.append([row])
                else:
                    track.append(row)
        found.extend(Track(shot, np.array(track)) for track in open_rows)
    return found


def _matched(points: np.ndarray, rows: np.ndarray, alive: list[list[int]]) -> list[tuple[int, list[int] | None]]:
    """Each of `rows` with the track that it continues, or None."""
    if not alive:
        return [(int(row), None) for row in rows]
    here, ends = points[rows], np.stack([points[track[-1]] for track in alive])
    size = np.maximum(face_height(here)[:, None], face_height(ends)[None])
    apart = np.linalg.norm(here[:, None, :, :2].mean(2) - ends[None, :, :, :2].mean(2), axis=-1) / size
    cost = apart + np.abs(np.log(face_height(here)[:, None] / face_height(ends)[None]))
    matches = {int(a): int(b) for a, b in zip(*linear_sum_assignment(cost), strict=True) if cost[a, b] < NEAR}
    return [(int(row), alive[matches[i]] if i in matches else None) for i, row in enumerate(rows)]

"""The people of a video: the tracks of each through all shots, found by the identity of the face and fitted, with one
mouth at rest and one style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from engine.backends.backend import Backend
from engine.models.morphable import VERTICES, MorphableModel, mouth_opening
from precompute.assessment import OTHER_PERSON
from precompute.bank import MAX_ERROR, MAX_TURN_DEG, MIN_SHARPNESS, REFERENCES
from precompute.dubbing.faces import Faces, Track
from precompute.fit import fit, rigid_poses
from precompute.occlusion import covered_frames
from precompute.person import FIT_ITERATIONS, torch_threads
from precompute.rest import rest_expression
from precompute.scan import face_height
from precompute.track import fill_gaps

SAME_PERSON = 0.43  # between the mean embeddings of two tracks, on average over a person
APART = 9.0  # for two faces in one picture
MAX_GAP = 3  # pictures without the face that are filled
MIN_RUN_S = 0.3
PIECE_S, OVERLAP_S = 40.0, 1.0  # a longer run is fitted in pieces, which overlap by that
MIN_SHARE = 0.02  # of the time of the person seen most; less is a passer-by or a mistake
STYLE_FRAMES = 3_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """A face through T consecutive pictures of one shot, the first of which is `start`, with its fit.

    alpha [T, K_s], beta [T, K_e], pose [T, 6], crop [T, 3] as in FaceFit; seen [T] bool: the face was found, else it is
    interpolated; covered [T] bool: an object is before the mouth; lip_error_px, yaw_deg, face_px, sharpness [T].
    """

    shot: int
    start: int
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: np.ndarray
    opening: np.ndarray
    seen: np.ndarray
    covered: np.ndarray
    lip_error_px: np.ndarray
    yaw_deg: np.ndarray
    face_px: np.ndarray
    sharpness: np.ndarray

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def stop(self) -> int:
        return self.start + len(self)

    def between(self, first: int, stop: int) -> Run:
        """The pictures `first` until before `stop` of the run, as a run."""
        values = {name: value[first:stop] for name, value in vars(self).items() if name not in ("shot", "start")}
        return Run(shot=self.shot, start=self.start + first, **values)


@dataclass(frozen=True)
class Person:
    """One person in all shots. alpha [K_s]: the mean shape; rest_beta [K_e], style [D] as in an avatar."""

    number: int
    runs: tuple[Run, ...]
    alpha: Tensor
    rest_beta: Tensor
    style: Tensor

    @property
    def pictures(self) -> int:
        return sum(len(run) for run in self.runs)

    @cached_property
    def good(self) -> list[np.ndarray]:
        """For each run the pictures [T] bool that are sharp, precisely fitted and not turned away."""
        seen = np.concatenate([run.seen for run in self.runs])
        sharp, error, yaw = (
            np.median(np.concatenate([getattr(run, name) for run in self.runs])[seen])
            for name in ("sharpness", "lip_error_px", "yaw_deg")
        )
        wanted = [
            run.seen
            & ~run.covered
            & (run.sharpness > MIN_SHARPNESS * sharp)
            & (run.lip_error_px < MAX_ERROR * error)
            & (np.abs(run.yaw_deg - yaw) < MAX_TURN_DEG)
            for run in self.runs
        ]
        enough = sum(map(np.count_nonzero, wanted)) >= REFERENCES
        return wanted if enough else [run.seen & ~run.covered for run in self.runs]


def people(
    faces: Faces,
    tracks: Sequence[Track],
    model: MorphableModel,
    backend: Backend,
    on_run: Callable[[int, int], None] = lambda *_: None,
) -> list[Person]:
    """Everybody whose mouth is seen, the one seen most first. on_run(done, total) is called after each fit."""
    groups = _same_person(faces, [part for track in tracks for part in _one_person(faces, track)])
    work = [(i, piece) for i, group in enumerate(groups) for track in group for piece in _pieces(faces, track)]
    runs: list[list[Run]] = [[] for _ in groups]
    with torch_threads(1), ThreadPoolExecutor(2, thread_name_prefix="fit") as pool:
        fitted = pool.map(lambda entry: _fitted(faces, entry[1], model), work)
        for done, ((group, _), run) in enumerate(zip(work, fitted, strict=True), 1):
            runs[group].append(run)
            on_run(done, len(work))
    shown = [group for group in runs if any((run.seen & ~run.covered).any() for run in group)]
    shown.sort(key=lambda group: -_weight(group))
    shown = [group for group in shown if _weight(group) >= MIN_SHARE * _weight(shown[0])]
    return [_person(number, group, model, backend) for number, group in enumerate(shown, 1)]


def _weight(runs: list[Run]) -> float:
    """How much of the video a face takes: pictures times height."""
    return float(sum(run.face_px.sum() for run in runs))


def _one_person(faces: Faces, track: Track) -> list[Track]:
    """A track cut where one person slowly becomes another (a dissolve), without the pictures in between."""
    here = np.flatnonzero(np.isin(faces.embedded, track.rows))
    samples, places = faces.embedding[here], np.searchsorted(track.rows, faces.embedded[here])
    parts, begin, first = [], 0, 0
    for k in range(1, len(samples)):
        before, after = samples[max(first, k - 2) : k].mean(0), samples[k : k + 2].mean(0)
        if np.linalg.norm(before - after) > OTHER_PERSON:
            parts.append(Track(track.shot, track.rows[begin : places[k - 1] + 1]))
            begin, first = int(places[k]), k
    return [*parts, Track(track.shot, track.rows[begin:])]


def _same_person(faces: Faces, tracks: list[Track]) -> list[list[Track]]:
    """Tracks grouped by the identity of the face. A track without a look at it is left out: it is very short."""
    looks = [np.isin(faces.embedded, track.rows) for track in tracks]
    known = [(track, faces.embedding[look].mean(0)) for track, look in zip(tracks, looks, strict=True) if look.any()]
    if len(known) < 2:
        return [[track] for track, _ in known]
    means = np.stack([mean for _, mean in known])
    distance = np.linalg.norm(means[:, None] - means[None], axis=-1)
    spans = [(faces.picture[track.rows[0]], faces.picture[track.rows[-1]]) for track, _ in known]
    for a, (first, last) in enumerate(spans):
        for b, (other_first, other_last) in enumerate(spans):
            if a != b and first <= other_last and other_first <= last:
                distance[a, b] = APART
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), SAME_PERSON, "distance")
    return [[known[i][0] for i in np.flatnonzero(labels == label)] for label in np.unique(labels)]


@dataclass(frozen=True)
class _Piece:
    """Rows of one face in a shot, and the pictures from `first` until before `stop` of them that a run takes."""

    shot: int
    rows: np.ndarray
    first: int
    stop: int


def _pieces(faces: Faces, track: Track) -> Iterator[_Piece]:
    """Stretches of a track without a long gap.

    Long ones come in pieces that overlap, so that the smoothing of the fit does not see their ends.
    """
    pictures = faces.picture[track.rows]
    gaps = np.flatnonzero(np.diff(pictures) > MAX_GAP + 1) + 1
    length, margin = (max(8, round(seconds * faces.rate_hz)) for seconds in (PIECE_S, OVERLAP_S / 2))
    for rows in np.split(track.rows, gaps):
        first, last = int(faces.picture[rows[0]]), int(faces.picture[rows[-1]])
        if last + 1 - first < max(3, MIN_RUN_S * faces.rate_hz):
            continue
        edges = [*range(first, last + 1, length)]
        if len(edges) > 1 and last + 1 - edges[-1] < length // 4:
            edges.pop()
        for start, stop in zip(edges, [*edges[1:], last + 1], strict=True):
            inside = rows[(faces.picture[rows] >= start - margin) & (faces.picture[rows] < stop + margin)]
            yield _Piece(track.shot, inside, start, stop)


def _fitted(faces: Faces, piece: _Piece, model: MorphableModel) -> Run:
    """The fit of a piece, without its margins."""
    rows, pictures = piece.rows, faces.picture[piece.rows]
    first, count = int(pictures[0]), int(pictures[-1] - pictures[0]) + 1
    points = np.full((count, *faces.points.shape[1:]), np.nan, np.float32)
    points[pictures - first] = faces.points[rows]
    seen = ~np.isnan(points[:, 0, 0])
    sharpness, covered = np.zeros((2, count), np.float32)
    sharpness[seen], covered[seen] = faces.sharpness[rows], faces.covered[rows]
    points = fill_gaps(points)
    face = fit(points, model, iterations=FIT_ITERATIONS)
    rotation, _, _ = rigid_poses(points[:, :VERTICES], model)
    kept = slice(max(piece.first, first) - first, min(piece.stop, first + count) - first)
    alpha, beta = torch.from_numpy(face.alpha[kept]), torch.from_numpy(face.beta[kept])
    return Run(
        shot=piece.shot,
        start=first + kept.start,
        alpha=alpha,
        beta=beta,
        pose=torch.from_numpy(face.pose[kept]),
        crop=face.crop[kept],
        opening=mouth_opening(model.vertices(alpha, beta)).numpy(),
        seen=seen[kept],
        covered=covered_frames(covered)[kept],
        lip_error_px=face.lip_error_px[kept],
        yaw_deg=np.degrees(np.arctan2(-rotation[kept, 0, 2], rotation[kept, 2, 2])),
        face_px=face_height(points[kept]),
        sharpness=sharpness[kept],
    )


def _person(number: int, runs: list[Run], model: MorphableModel, backend: Backend) -> Person:
    runs = sorted(runs, key=lambda run: run.start)
    step = max(1, sum(len(run) for run in runs) // STYLE_FRAMES)
    alpha, beta = (torch.cat([getattr(run, name) for run in runs])[::step] for name in ("alpha", "beta"))
    bare = Person(number, tuple(runs), alpha.mean(0), beta[0], beta[0])
    good = np.concatenate(bare.good)[::step]
    return Person(
        number,
        tuple(runs),
        alpha.mean(0),
        rest_expression(model, alpha, beta, good),
        backend.style((model.mean + model.expression(beta))[None])[0],
    )


def boxes(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops [..., 3] (left, top, size) to left, top, right, bottom [..., 4] within a picture of (width, height)."""
    left, top, side = np.moveaxis(crop.astype(np.int64), -1, 0)
    width, height = size
    edges = left.clip(0, width - 2), top.clip(0, height - 2), (left + side).clip(2, width), (top + side).clip(2, height)
    return np.stack(edges, -1)

"""Face landmarks of every frame: MediaPipe Face Mesh with attention (478 points, the last ten are irises)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Self

import numpy as np

from engine.errors import DependencyError

POINTS = 478
SEARCH_EVERY_FRAMES = 5  # while there is no face; a search costs three times a tracked frame
SURER = 0.1  # of a detector's mean score in 0 ... 1: upright faces reach 0.79 to 0.87, others at most 0.70
REGION_GROWTH = 1.2  # face heights around a distant face: room for it to move by its own size


@dataclass(frozen=True)
class Landmarks:
    """`points` [T, 478, 3] float32: x right, y down, z away from the camera, all in frame pixels.

    Rows where `tracked` [T] is False are NaN. `faces` [T] counts the faces, up to the tracker's `max_faces`.
    """

    points: np.ndarray
    faces: np.ndarray

    @property
    def tracked(self) -> np.ndarray:
        return self.faces > 0


@contextmanager
def _quiet_native_log() -> Iterator[None]:
    """MediaPipe's C++ prints start-up chatter to file descriptor 2, past Python's logging."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _solutions() -> tuple[ModuleType, ModuleType]:
    """MediaPipe's face detection and face mesh. 1 s to import, so only where they are used. Raises DependencyError."""
    try:
        from mediapipe.python.solutions import face_detection, face_mesh
    except ImportError as error:
        raise DependencyError(
            f"enrolling a speaker and dubbing a video need the face tracker of mediapipe ({error}); "
            "run `pip install 'personastream[enroll]'` with Python 3.11 or 3.12"
        ) from error
    return face_detection, face_mesh


class FaceTracker:
    """Tracks faces through consecutive frames of one clip; the largest face comes first.

    The mesh detects only faces higher than about a sixth of the picture. Without one, a detector for distant faces
    searches the picture, and the mesh then works inside a region around the detected faces.
    """

    def __init__(self, *, max_faces: int = 1):
        with _quiet_native_log():
            detection, mesh = _solutions()
            self._mesh = mesh.FaceMesh(max_num_faces=max_faces, refine_landmarks=True, min_tracking_confidence=0.5)
            self._distant = detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
            for network in (self._mesh, self._distant):  # the first picture starts threads that log
                network.process(np.zeros((64, 64, 3), np.uint8))
        self._region: tuple[int, int, int, int] | None = None  # left, top, right, bottom
        self._missed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mesh.close()
        self._distant.close()

    def detect(self, image: np.ndarray) -> list[np.ndarray]:
        """All faces in `image` [H, W, 3] uint8 RGB, each [478, 3] float32 in pixels, largest first."""
        faces = self._meshes(image)
        if faces:
            self._missed = 0
            return faces
        self._missed += 1
        if self._missed % SEARCH_EVERY_FRAMES != 1:
            return []
        before, self._region = self._region, self._search(image)
        return self._meshes(image) if self._region or before else []

    def _meshes(self, image: np.ndarray) -> list[np.ndarray]:
        left, top, right, bottom = self._region or (0, 0, image.shape[1], image.shape[0])
        with _quiet_native_log():
            result = self._mesh.process(np.ascontiguousarray(image[top:bottom, left:right]))
        scale = np.array([right - left, bottom - top, right - left], np.float32)
        shift = np.array([left, top, 0], np.float32)
        faces = [
            np.array([(p.x, p.y, p.z) for p in face.landmark], np.float32) * scale + shift
            for face in result.multi_face_landmarks or ()
        ]
        return sorted(faces, key=lambda points: -float(np.ptp(points[:, 1])))

    def _search(self, image: np.ndarray) -> tuple[int, int, int, int] | None:
        """A region of the picture with every distant face and room around it for the head to move, or None."""
        height, width = image.shape[:2]
        with _quiet_native_log():
            detections = self._distant.process(image).detections
        boxes = [detection.location_data.relative_bounding_box for detection in detections or ()]
        if not boxes:
            return None
        reach = REGION_GROWTH * max(box.height * height for box in boxes)
        return (
            max(0, int(min(box.xmin for box in boxes) * width - reach)),
            max(0, int(min(box.ymin for box in boxes) * height - reach)),
            min(width, int(max(box.xmin + box.width for box in boxes) * width + reach)),
            min(height, int(max(box.ymin + box.height for box in boxes) * height + reach)),
        )


def upright_turns(pictures: list[np.ndarray]) -> int:
    """The clockwise quarter turns after which the detector is surest of faces in pictures [H, W, 3] uint8 RGB.

    0 unless it is much surer than without a turn: it half believes in a face that is upside down, and the mesh laid
    onto one stands upright.
    """
    scores = [0.0] * 4
    with _quiet_native_log():
        detection, _ = _solutions()
        with detection.FaceDetection(model_selection=1, min_detection_confidence=0.5) as detector:
            for turns in range(4):
                for picture in pictures:
                    found = detector.process(np.ascontiguousarray(np.rot90(picture, -turns))).detections
                    scores[turns] += max((face.score[0] for face in found or ()), default=0.0) / len(pictures)
    best = int(np.argmax(scores))
    return best if scores[best] > scores[0] + SURER else 0


def track(frames: Iterable[np.ndarray]) -> Landmarks:
    """Landmarks of the largest face in each frame [H, W, 3] uint8 RGB."""
    points: list[np.ndarray] = []
    counts: list[int] = []
    with FaceTracker() as tracker:
        for image in frames:
            faces = tracker.detect(image)
            counts.append(len(faces))
            points.append(faces[0] if faces else np.full((POINTS, 3), np.nan, np.float32))
    return Landmarks(np.array(points, np.float32).reshape(-1, POINTS, 3), np.array(counts, np.int32))


def longest_run(tracked: np.ndarray, *, max_gap: int = 3) -> slice:
    """The longest stretch of tracked frames [T] bool that no gap of more than `max_gap` frames interrupts."""
    hits = np.flatnonzero(tracked)
    if not len(hits):
        return slice(0, 0)
    breaks = np.flatnonzero(np.diff(hits) > max_gap + 1)
    starts, stops = hits[np.r_[0, breaks + 1]], hits[np.r_[breaks, len(hits) - 1]] + 1
    best = int(np.argmax(stops - starts))
    return slice(int(starts[best]), int(stops[best]))


def fill_gaps(points: np.ndarray) -> np.ndarray:
    """Interpolate NaN frames of points [T, V, 3] linearly over time; the ends must be present."""
    known = np.flatnonzero(~np.isnan(points[:, 0, 0]))
    missing = np.setdiff1d(np.arange(len(points)), known)
    after = np.searchsorted(known, missing)
    left, right = known[after - 1], known[after]
    share = ((missing - left) / (right - left)).astype(np.float32)[:, None, None]
    filled = points.copy()
    filled[missing] = points[left] * (1 - share) + points[right] * share
    return filled

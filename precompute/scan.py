"""The first pass over the clip: landmarks and measures of every frame. Of the pixels only thumbnails are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from engine.media import FPS
from precompute.identity import Identity
from precompute.identity import is_installed as identity_installed
from precompute.occlusion import Occlusion
from precompute.track import POINTS, FaceTracker, Landmarks, upright_turns

THUMBNAIL = (64, 36)  # width, height: enough to distinguish a cut from motion, and postures of the body
FOREHEAD, CHIN = 10, 152
IDENTITY_FRAMES = 20  # between two frames whose face is compared; one takes as long as three of the scan
TURN_SAMPLES = 8  # pictures, one a second, that are turned to see whether a face is upright
FACE_PX = 128  # the face is scaled to this height before its sharpness is measured


@dataclass(frozen=True)
class Scan:
    """Measures of T frames of `width` x `height` pixels at 25 fps.

    landmarks: of the largest face.  second_px [T]: height of the second largest face, 0 without one.
    change [T] in [0, 1]: share of the picture's colours that differ from the frame before.
    sharpness [T]: variance of the Laplacian of the face, in squared grey levels; brightness [T]: its mean grey level;
    both NaN without a face.  mouth_covered [T] in [0, 1]: share of the lips behind an object, NaN without a face.
    thumbnails [T, 36, 64] uint8, grey.  jumps: frames behind a jump of the time stamps.
    identities: embedding [128] of the face in some frames, by their numbers; empty where the network is not installed.
    turns: clockwise quarter turns after which faces are detected better than in the picture as it is.
    """

    landmarks: Landmarks
    second_px: np.ndarray
    change: np.ndarray
    sharpness: np.ndarray
    brightness: np.ndarray
    mouth_covered: np.ndarray
    thumbnails: np.ndarray
    width: int
    height: int
    jumps: tuple[int, ...] = ()
    turns: int = 0
    identities: Mapping[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.change)


def face_height(points: np.ndarray) -> np.ndarray:
    """Forehead to chin of points [..., 478, 3], in the same unit."""
    height: np.ndarray = np.linalg.norm((points[..., FOREHEAD, :] - points[..., CHIN, :])[..., :2], axis=-1)
    return height


def colours(thumbnail: np.ndarray) -> np.ndarray:
    """Histogram of a small RGB picture over 8 x 8 x 8 colours, summing to one."""
    bins = (thumbnail >> 5).reshape(-1, 3).astype(np.int32) @ np.array([64, 8, 1])
    return np.bincount(bins, minlength=512) / len(bins)


def sharpness_and_brightness(image: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Sharpness and brightness of the face's box."""
    height, width = image.shape[:2]
    left, top = np.clip(points[:, :2].min(0), 0, (width - 2, height - 2)).astype(int)
    right, bottom = np.clip(points[:, :2].max(0), (left + 2, top + 2), (width, height)).astype(int)
    grey = cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
    scale = FACE_PX / max(1, bottom - top)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()), float(grey.mean())


def is_apart(face: np.ndarray, other: np.ndarray) -> bool:
    """Whether two meshes are of two faces: the tracker sometimes puts two on one."""
    distance = np.linalg.norm(face[:, :2].mean(0) - other[:, :2].mean(0))
    return bool(distance > 0.5 * max(face_height(face), face_height(other)))


def scan(
    frames: Iterable[np.ndarray], *, on_frame: Callable[[int], None] = lambda _: None, jumps: Iterable[int] = ()
) -> Scan:
    """Measure every frame [H, W, 3] uint8 RGB. `on_frame(n)` is called after the n-th frame.

    `jumps` is read at the end: it may be filled while the frames are read.
    """
    points, counts, rows, thumbnails = [], [], [], []
    histogram: np.ndarray | None = None
    size = (0, 0)
    sample: list[np.ndarray] = []
    identity = Identity() if identity_installed() else None
    occlusion = Occlusion()
    identities: dict[int, np.ndarray] = {}
    with FaceTracker(max_faces=2) as tracker:
        for number, image in enumerate(frames):
            size = image.shape[1], image.shape[0]
            if number % FPS == 0 and len(sample) < TURN_SAMPLES:
                sample.append(image)
            faces = tracker.detect(image)
            small = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA)
            if identity is not None and faces and number % IDENTITY_FRAMES == 0:
                identities[number] = identity.embed(image, faces[0])
            before, histogram = histogram, colours(small)
            change = 0.0 if before is None else float(np.abs(histogram - before).sum() / 2)
            look = sharpness_and_brightness(image, faces[0]) if faces else (np.nan, np.nan)
            covered = occlusion.share(image, faces[0]) if faces else np.nan
            others = [face for face in faces[1:] if is_apart(face, faces[0])]
            second = float(face_height(others[0])) if others else 0.0
            points.append(faces[0] if faces else np.full((POINTS, 3), np.nan, np.float32))
            counts.append(min(1, len(faces)) + len(others))
            rows.append((second, change, *look, covered))
            thumbnails.append(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
            on_frame(number + 1)
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Scan(
        landmarks=Landmarks(np.array(points, np.float32).reshape(-1, POINTS, 3), np.array(counts, np.int32)),
        second_px=table[:, 0],
        change=table[:, 1],
        sharpness=table[:, 2],
        brightness=table[:, 3],
        mouth_covered=table[:, 4],
        thumbnails=np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL[1], THUMBNAIL[0]),
        width=size[0],
        height=size[1],
        jumps=tuple(jumps),
        turns=upright_turns(sample),
        identities=identities,
    )

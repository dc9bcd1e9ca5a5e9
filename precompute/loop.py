"""The joint of the base loop: two frames between which a jump is invisible."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from engine.avatar.loop import Loop
from engine.media import FPS
from engine.models.morphable import CROP_PX

MIN_LOOP_FRAMES = 4 * FPS  # viewers notice a shorter loop
MIN_SHARE = 0.4  # of the clip; below it, a ping-pong through the whole clip is the better loop
# Largest differences at a joint, in face heights (position) and face heights per frame (velocity).
POSITION, VELOCITY = 0.015, 0.006
PICTURE = 6.0  # grey levels: shoulders, hands and background
PAD = 6
ANCHORS = ((-0.6, 0.0, 0.0), (0.6, 0.0, 0.0), (0.0, 0.8, -0.2), (0.0, -0.6, 0.0))  # model units, around the head


def anchor_track(pose: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Positions of four points of the head, [T, 8], in face heights, from pose [T, 6] and crop [T, 3]."""
    turned = np.einsum("tij,aj->tai", Rotation.from_rotvec(pose[:, :3]).as_matrix(), ANCHORS)[..., :2]
    in_crop = (turned * pose[:, None, 3:4] + pose[:, None, 4:6]) * CROP_PX
    in_frame = in_crop * (crop[:, None, 2:] / CROP_PX) + crop[:, None, :2]
    height = np.median(pose[:, 3] * crop[:, 2]) * 1.4  # a face is 1.4 model units high
    return in_frame.reshape(len(pose), -1) / height


def find_loop(pose: np.ndarray, crop: np.ndarray, thumbnails: np.ndarray) -> Loop:
    """The longest loop whose joint matches in position and velocity of the head and in the whole picture.

    pose [T, 6], crop [T, 3], thumbnails [T, h, w] uint8. Falls back to a ping-pong through the whole clip.
    """
    total = len(pose)
    # Both ends are continued in a straight line. Otherwise the filter would let every clip start and end at rest.
    continued = np.pad(anchor_track(pose, crop), ((PAD, PAD), (0, 0)), "reflect", reflect_type="odd")
    smooth = gaussian_filter1d(continued, 1.0, axis=0)
    place, speed = smooth[PAD:-PAD], np.gradient(smooth, axis=0)[PAD:-PAD]
    picture = thumbnails.reshape(total, -1).astype(np.float32)
    shortest = max(MIN_LOOP_FRAMES, int(MIN_SHARE * total))
    best: tuple[int, int] | None = None
    # `stop` is not played: `start` follows in its place and must therefore resemble it.
    for start in range(0, total - shortest):
        least = shortest if best is None else best[1] - best[0] + 1
        stops = np.arange(start + least, total)
        if not len(stops):
            break
        distance = np.sqrt(2 * np.square(place[stops] - place[start]).mean(1)) / POSITION
        acceleration = np.sqrt(2 * np.square(speed[stops] - speed[start]).mean(1)) / VELOCITY
        close = stops[(distance < 1) & (acceleration < 1)]
        for stop in close[::-1]:
            if np.abs(picture[stop] - picture[start]).mean() < PICTURE:
                best = (start, int(stop))
                break
    return Loop("ping_pong", 0, total) if best is None else Loop("wrap", *best)

"""The detection of objects before a mouth: false alarms on clips as they are, hits on clips with drawn objects.

The objects are not those of training: a hand with fingers and nails, a palm, a mug with its handle, a microphone with
its grille and stick. They are drawn into the frames, so the face tracker sees them too.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track as progress

from engine.models.morphable import LIPS_OUTER
from precompute.frame_size import scan_size
from precompute.occlusion import Occlusion, covered_frames
from precompute.track import FaceTracker
from precompute.video import probe, read_frames
from training.data.clips import Clip, read_manifest

FRAMES = 100
COMES, GOES, TRAVEL_FRAMES = 25, 65, 8
CHEEKS = (50, 280, 101, 330, 205, 425)
RIGHT_EYE, LEFT_EYE, CHIN, BRIDGE, MOUTH = 33, 263, 152, 168, (61, 291, 0, 17)

Drawing = tuple[np.ndarray, np.ndarray]
"""Colours [H, W, 3] float32 and coverage [H, W] float32 in 0 … 1."""
Draw = Callable[[np.ndarray, np.ndarray, float], Drawing]
"""(x [H, W], y [H, W], pixels per unit): places relative to the object, in distances between the outer eye corners."""


def hand(rng: np.random.Generator, skin: np.ndarray) -> Draw:
    """Four fingers that lie across."""
    colour, grain = skin * rng.uniform(0.8, 1.12), _grain(rng)

    def draw(x: np.ndarray, y: np.ndarray, unit_px: float) -> Drawing:
        picture, cover = np.zeros((*x.shape, 3), np.float32), np.zeros(x.shape, np.float32)
        for finger in range(4):
            tip, across = 0.06 * abs(finger - 1.3), y - (finger - 1.5) * 0.19
            distance = np.hypot(np.maximum(np.abs(x - 0.25) - 0.75 + tip, 0), across) / 0.1
            edge = np.clip((1 - distance) * 0.1 * unit_px + 0.5, 0, 1)
            round_light = np.sqrt(np.clip(1 - distance**2, 0, 1)) * 0.42 + 0.62
            nail = (np.abs(x + 0.42 - tip) < 0.07) & (np.abs(across) < 0.06)
            look = colour * round_light[..., None] + cv2.resize(grain, x.shape[::-1])[..., None] + 10 * nail[..., None]
            picture += (look - picture) * edge[..., None]
            cover = np.maximum(cover, edge)
        return picture, cover

    return draw


def palm(rng: np.random.Generator, skin: np.ndarray) -> Draw:
    """A rounded patch of skin with two creases."""
    colour, grain, slope = skin * rng.uniform(0.8, 1.12), _grain(rng), rng.uniform(-0.5, 0.5)

    def draw(x: np.ndarray, y: np.ndarray, unit_px: float) -> Drawing:
        distance = np.hypot(x / 0.55, y / 0.5)
        creases = -18 * np.exp(-(((y - slope * x - 0.1) / 0.015) ** 2)) - 14 * np.exp(
            -(((y + slope * x + 0.12) / 0.012) ** 2)
        )
        look = colour * (1.05 - 0.25 * distance[..., None]) + (cv2.resize(grain, x.shape[::-1]) + creases)[..., None]
        return look, np.clip((1 - distance) * 0.5 * unit_px + 0.5, 0, 1)

    return draw


def mug(rng: np.random.Generator, _: np.ndarray) -> Draw:
    """A cylinder with a handle, plain or dotted."""
    colours = ((235, 232, 225), (170, 30, 35), (40, 70, 150), (30, 32, 34), (210, 180, 60), (60, 120, 80))
    colour, dotted = np.array(colours[rng.integers(6)], np.float32), rng.random() < 0.4

    def draw(x: np.ndarray, y: np.ndarray, unit_px: float) -> Drawing:
        cover = np.clip((1 - np.maximum(np.abs(x) / 0.5, np.abs(y) / 0.55)) * 0.5 * unit_px + 0.5, 0, 1)
        cover[(np.abs(np.hypot(x - 0.6, y / 1.2) - 0.2) < 0.05) & (x > 0.48)] = 1
        light = 0.55 + 0.5 * np.sqrt(np.clip(1 - (x / 0.5) ** 2, 0, 1)) + 0.35 * np.exp(-(((x + 0.2) / 0.06) ** 2))
        dots = (dotted and np.sin(x * 14) + np.sin(y * 14) > 0.6) | np.zeros(x.shape, bool)
        look = np.where(dots[..., None], 255 - colour * 0.6, colour) * light[..., None]
        return look + 25 * (np.abs(y + 0.51) < 0.03)[..., None], cover

    return draw


def microphone(rng: np.random.Generator, _: np.ndarray) -> Draw:
    """A ball of grille or foam on a stick."""
    grey, radius, foam, grain = rng.uniform(25, 140), rng.uniform(0.26, 0.36), rng.random() < 0.4, _grain(rng)

    def draw(x: np.ndarray, y: np.ndarray, unit_px: float) -> Drawing:
        distance = np.hypot(x, y) / radius
        ball = np.clip((1 - distance) * radius * unit_px + 0.5, 0, 1)
        stick = np.clip((0.13 - np.abs(x)) * unit_px + 0.5, 0, 1) * (y > radius * 0.8)
        grille = np.sin((x + y) * unit_px * 1.1) * np.sin((x - y) * unit_px * 1.1) * 0.35
        pattern = cv2.resize(grain, x.shape[::-1]) * 0.03 if foam else grille
        light = 0.5 + 0.6 * np.sqrt(np.clip(1 - distance**2, 0, 1)) - 0.25 * x / radius + pattern
        look = np.where(ball > 0.5, (25 if foam else grey) * light, 28 * (1.2 - np.abs(x) / 0.13 * 0.6))
        look[(np.abs(y - radius * 0.85) < 0.05) & (np.abs(x) < radius * 0.75)] = grey * 1.4
        return np.repeat(look[..., None], 3, 2), np.maximum(ball, stick)

    return draw


OBJECTS = {"hand": hand, "palm": palm, "mug": mug, "microphone": microphone}
PLACES = {"mouth": (0.0, 0.0), "half": (0.0, 0.5), "side": (0.5, 0.0), "chin": (0.0, 0.85)}
"""Of an object's middle: to the right of the mouth and below it, in distances between the outer eye corners."""


def _grain(rng: np.random.Generator) -> np.ndarray:
    layers = [
        level * cv2.resize(rng.normal(0, 1, (side, side)), (64, 64), interpolation=cv2.INTER_CUBIC)
        for level, side in ((2, 32), (3, 9), (6, 3))
    ]
    return np.sum(layers, 0, np.float32)


def lay_over(
    image: np.ndarray, mesh: np.ndarray, draw: Draw, at: tuple[float, float], tilt: float = 0.0
) -> tuple[np.ndarray, float]:
    """A copy of image [H, W, 3] with an object, `at` as in PLACES and turned by `tilt` radians; and the share of the
    lips of mesh [478, 3] that it covers."""
    unit_px = float(np.linalg.norm(mesh[RIGHT_EYE, :2] - mesh[LEFT_EYE, :2]))
    down = (mesh[CHIN, :2] - mesh[BRIDGE, :2]) / np.linalg.norm(mesh[CHIN, :2] - mesh[BRIDGE, :2])
    centre = mesh[list(MOUTH), :2].mean(0) + unit_px * (at[0] * np.array([down[1], -down[0]]) + at[1] * down)
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    x = ((columns - centre[0]) * np.cos(tilt) + (rows - centre[1]) * np.sin(tilt)) / unit_px
    y = ((rows - centre[1]) * np.cos(tilt) - (columns - centre[0]) * np.sin(tilt)) / unit_px
    look, cover = draw(x, y, unit_px)
    cover = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), 0.7)
    lips = np.zeros(image.shape[:2], np.uint8)
    outline = cv2.convexHull(np.rint(mesh[list(LIPS_OUTER), :2] * 16).astype(np.int32))
    cv2.fillConvexPoly(lips, outline, [1], shift=4)
    laid = np.clip(image * (1 - cover[..., None]) + np.clip(look, 0, 255) * cover[..., None] + 0.5, 0, 255)
    return laid.astype(np.uint8), float((cover * lips).sum() / max(1, lips.sum()))


def skin_of(image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The colour [3] of the cheeks."""
    x, y = np.clip(np.rint(mesh[list(CHEEKS), :2]).astype(int).T, 0, [[image.shape[1] - 1], [image.shape[0] - 1]])
    colour: np.ndarray = np.median(image[y, x], 0).astype(np.float32)
    return colour


def _visit(rng: np.random.Generator, place: str, frame: int) -> tuple[float, float] | None:
    """Where an object is in a frame that comes from below, stays for a while and goes; None while it is away."""
    away = max(COMES - frame, frame - GOES, 0) / TRAVEL_FRAMES
    if away > 1:
        return None
    right, down = PLACES[place] + rng.normal(0, 0.01, 2)
    return right + 0.5 * away, down + 1.5 * away


def _frames(clip: Clip, limit: int | None = None) -> Iterator[np.ndarray]:
    info = probe(clip.path)
    return islice(read_frames(clip.path, size=scan_size(info.width, info.height)), limit)


def _shares(images: Iterator[np.ndarray] | list[np.ndarray], occlusion: Occlusion) -> np.ndarray:
    with FaceTracker() as tracker:
        faces = ((image, tracker.detect(image)) for image in images)
        return np.array([occlusion.share(image, found[0]) if found else np.nan for image, found in faces])


def _hits(clip: Clip, name: str, place: str, occlusion: Occlusion) -> dict[str, int]:
    """Frames that count, and those of them that are found: at least half of the lips covered, and none of them."""
    rng = np.random.default_rng(zlib.crc32(f"{clip.name} {name} {place}".encode()))
    images = list(_frames(clip, FRAMES))
    with FaceTracker() as tracker:
        meshes = [mesh for image in images for mesh in tracker.detect(image)[:1]]
    if len(meshes) < FRAMES:
        return {}
    draw, tilt = OBJECTS[name](rng, skin_of(images[0], meshes[0])), rng.uniform(-0.5, 0.5)
    truth = np.zeros(FRAMES)
    for number, mesh in enumerate(meshes):
        if (at := _visit(rng, place, number)) is not None:
            images[number], truth[number] = lay_over(images[number], mesh, draw, at, tilt)
    shares = _shares(images, occlusion)
    found = covered_frames(shares) | np.isnan(shares)
    covered, clear = truth >= 0.5, truth == 0
    return {
        "covered": int(covered.sum()), "found": int(found[covered].sum()),
        "clear": int(clear.sum()), "false": int(found[clear].sum()),
    }  # fmt: skip


def evaluate(data: Path, *, people: int = 24) -> dict[str, object]:
    """Hits on a clip of each of `people` people, those of the split `val` first; false alarms on all clips."""
    occlusion = Occlusion()
    clips = sorted(read_manifest(data), key=lambda clip: (clip.split != "val", -clip.duration_s))
    hits: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    persons = {clip.identity: clip for clip in reversed(clips) if clip.kind == "real" and clip.duration_s > FRAMES / 25}
    for clip in progress(list(persons.values())[::-1][:people], "objects"):
        for name in OBJECTS:
            for place in PLACES:
                for key, value in _hits(clip, name, place, occlusion).items():
                    hits[f"{name}, {place}"][key] += value
    frames = 0
    alarms: dict[str, int] = {}
    for clip in progress(clips, "clean clips"):
        shares = _shares(_frames(clip), occlusion)
        frames += int((~np.isnan(shares)).sum())
        if count := int(covered_frames(shares).sum()):
            alarms[clip.name] = count
    return {"objects": hits, "frames": frames, "alarms": alarms}

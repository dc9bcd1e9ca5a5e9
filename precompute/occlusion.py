"""Objects before the mouth: a hand, a mug, a microphone.

    occlusion = Occlusion()
    shares = [occlusion.share(image, mesh) if mesh is not None else np.nan for image, mesh in ...]
    covered = covered_frames(np.array(shares))

The mesh lays the lower face of a frame flat into a patch, where the lips have the same place and shape in every pose
and at every opening. A small network tells for each cell of the patch how much of it is covered. It sees one frame
alone, so it also detects an object that stays before the mouth for the whole clip. `training/occlusion` trains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import binary_dilation, label
from torch import Tensor, nn

from engine.models.morphable import LIPS_OUTER, VERTICES
from engine.models.weights import load, load_face_model
from engine.paint.raster import Coverage, locate, spread

WEIGHTS = Path(__file__).with_name("occlusion.safetensors")
PATCH_PX, CELL_PX = 64, 8
PIXEL = 0.02  # model units: the mouth is 28 pixels wide
LEFT, TOP = -0.62, 0.27  # model units: from below the eyes to the chin, cheek to cheek
FAINT = 0.04  # of the range of values: noise of an even patch is not blown up to a pattern
COVERED = 0.4  # share of the lips: from here on, an object is before the mouth
TOUCHED = 0.2  # share of the lips while an object comes and goes; open mouths and shadows stay below it
MIN_FRAMES = 3  # a shorter finding is motion blur, or a mesh that slipped
MARGIN_FRAMES = 2  # around an object: its motion blur and its shadow


@dataclass(frozen=True)
class _Layout:
    """The places of a patch: the `coverage` [64, 64] by `triangles` [F, 3], the `face` [64, 64] bool, and the share of
    the `lips` in each cell, [8, 8]."""

    coverage: Coverage
    triangles: np.ndarray
    face: np.ndarray
    lips: np.ndarray


@cache
def layout() -> _Layout:
    model = load_face_model()
    flat = model.mean.numpy().copy()
    flat[:, :2] = (flat[:, :2] - (LEFT, TOP)) / PIXEL
    triangles = model.triangles.numpy()
    coverage = locate(flat, triangles, PATCH_PX, PATCH_PX)
    lips = np.zeros((PATCH_PX, PATCH_PX), np.float32)
    outline = cv2.convexHull(np.rint(flat[list(LIPS_OUTER), :2] * 16).astype(np.int32))
    cv2.fillConvexPoly(lips, outline, [1.0], shift=4)
    cells = cv2.resize(lips, None, fx=1 / CELL_PX, fy=1 / CELL_PX, interpolation=cv2.INTER_AREA)
    return _Layout(coverage, triangles, coverage.triangle >= 0, cells / cells.sum())


def mouth_patch(image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """The lower face of image [H, W, 3] uint8 RGB, laid flat by its mesh [>=468, >=2] in pixels: [64, 64, 3] uint8."""
    flat = layout()
    places = spread(flat.coverage, flat.triangles, mesh[None, :VERTICES, :2])[0]
    height, width = image.shape[:2]
    inside = places[:, flat.face]
    left, top = np.clip(inside.min(1), 0, (width - 2, height - 2)).astype(int)
    right, bottom = np.clip(inside.max(1) + 2, (left + 2, top + 2), (width, height)).astype(int)
    part = image[top:bottom, left:right]
    scale = min(1.0, PATCH_PX / float(np.ptp(inside[0]) + 1))  # the area filter keeps a fine pattern from aliasing
    if scale < 1:
        part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x, y = ((places - np.array([left, top])[:, None, None]) * scale - 0.5).astype(np.float32)
    return cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, kw_only=True)
class OcclusionConfig:
    """Widths of the layers."""

    widths: tuple[int, ...] = (16, 24, 32)


class OcclusionNetwork(nn.Module):
    """patches [B, 64, 64, 3] uint8 RGB to logits [B, 8, 8]: how much of each cell is covered."""

    def __init__(self, config: OcclusionConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.around = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.whole = nn.Linear(widths[-1], widths[-1])
        self.further = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.out = nn.Conv2d(widths[-1], 1, 1)
        self.register_buffer("face", torch.from_numpy(layout().face).float(), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        x = self._normalised(patches)
        for layer in self.down:
            x = layer(x).relu()
        x = (self.around(x) + self.whole(x.mean((2, 3)))[..., None, None]).relu()
        x = (self.further(x) + x).relu()
        logits: Tensor = self.out(x)[:, 0]
        return logits

    def _normalised(self, patches: Tensor) -> Tensor:
        """Without the colour of the light and the contrast of the picture; zero outside the face."""
        face: Tensor = self.face  # type: ignore[assignment]
        x = patches.permute(0, 3, 1, 2).float() / 255
        x = (x - (x * face).sum((2, 3), keepdim=True) / face.sum()) * face
        deviation = (x.square().sum((1, 2, 3), keepdim=True) / (3 * face.sum())).sqrt()
        return x / (deviation + FAINT)


class Occlusion:
    """The trained network. Raises WeightsError. One thread may use it at a time."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._network = load(OcclusionNetwork, OcclusionConfig, weights)
        self._lips = torch.from_numpy(layout().lips)

    def share(self, image: np.ndarray, mesh: np.ndarray) -> float:
        """The share of the lips behind an object, in image [H, W, 3] uint8 RGB with mesh [>=468, >=2] in pixels."""
        return float(self.shares(mouth_patch(image, mesh)[None])[0])

    @torch.inference_mode()
    def shares(self, patches: np.ndarray) -> np.ndarray:
        """The share [T] float32 in 0 … 1 of the lips that an object covers in each of patches [T, 64, 64, 3] uint8."""
        cells = self._network(torch.from_numpy(patches)).sigmoid()
        shares: np.ndarray = (cells * self._lips).sum((1, 2)).numpy()
        return shares


def covered_frames(share: np.ndarray) -> np.ndarray:
    """Frames [T] bool of one shot that show an object before the mouth.

    share [T]: as in `Occlusion.share`, NaN without a face. A finding is a run of frames with touched lips of which at
    least MIN_FRAMES are covered, with a margin around it.
    """
    share = np.nan_to_num(share)
    runs, count = label(share > TOUCHED)
    frames = np.bincount(runs[share > COVERED], minlength=count + 1)
    found = (runs > 0) & (frames >= min(MIN_FRAMES, len(share)))[runs]
    return binary_dilation(found, iterations=MARGIN_FRAMES) if found.any() else found

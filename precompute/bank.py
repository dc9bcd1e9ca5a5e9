"""The lip references (§3.2): frames spread over the clip's mouth openings, shapes of the lips and turns of the head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.config import Quality
from engine.models.morphable import CROP_PX
from engine.models.renderer import FINE
from engine.paint.composite import cut
from engine.paint.references import distances
from precompute.fit import FaceFit

REFERENCES = 25  # N_l of the paper
MIN_SHARPNESS = 0.7  # of the clip's median: less is motion blur
MAX_ERROR = 1.8  # of the clip's median reprojection error of the lips
MAX_TURN_DEG = 25.0  # from the usual direction of the head
FINE_FROM_PX = 288  # crops of smaller squares of the frame gain nothing from 512 px; docs/renderer.md has the figures


def good_frames(fit: FaceFit, visible: np.ndarray, sharpness: np.ndarray, yaw_deg: np.ndarray) -> np.ndarray:
    """Frames [T] bool that are sharp, precisely fitted and not turned away; criteria are relaxed until enough pass.

    visible [T] bool: the frame shows a face and nothing before its mouth; sharpness [T] as in Scan; yaw_deg [T].
    """
    with np.errstate(invalid="ignore"):
        sharp = sharpness > MIN_SHARPNESS * np.nanmedian(sharpness)
        frontal = np.abs(yaw_deg - np.nanmedian(yaw_deg)) < MAX_TURN_DEG
    precise = fit.lip_error_px < MAX_ERROR * np.median(fit.lip_error_px)
    for good in (visible & sharp & frontal & precise, visible & precise, visible):
        if good.sum() >= REFERENCES:
            return good
    return np.ones(len(visible), bool)


def choose(opening: np.ndarray, lips: np.ndarray, turns: np.ndarray, good: np.ndarray) -> np.ndarray:
    """REFERENCES of the frames `good` [T] bool, or all of them where there are fewer; from the most closed to the most
    open mouth.

    opening [T], lips [T, 40, 3] in model units, turns [T, 3] in radians. The first half is evenly spaced in the order
    of opening; then each is the frame whose lips and turn are the farthest from those of all chosen ones, by the
    distance that chooses among references. docs/renderer.md has the figures.
    """
    candidates = np.flatnonzero(good)
    ordered = candidates[np.argsort(opening[candidates], kind="stable")]
    count = min(REFERENCES, len(ordered))
    chosen = ordered[np.rint(np.linspace(0, len(ordered) - 1, (count + 1) // 2)).astype(int)].tolist()
    away = np.min([distances(lips[ordered], turns[ordered], lips[i], turns[i]) for i in chosen], axis=0)
    while len(chosen) < count:
        farthest = int(ordered[np.argmax(away)])
        chosen.append(farthest)
        away = np.minimum(away, distances(lips[ordered], turns[ordered], lips[farthest], turns[farthest]))
    return np.array(sorted(chosen, key=lambda frame: opening[frame]))


def crop_px(fit: FaceFit, quality: Quality) -> int:
    """Side of the reference crops: 512 px for a large face unless the quality is `fast`, else 256 px."""
    return FINE * CROP_PX if quality == "best" and np.median(fit.crop[:, 2]) >= FINE_FROM_PX else CROP_PX


def build(frames: np.ndarray, fit: FaceFit, read: Callable[[int], np.ndarray], quality: Quality) -> dict[str, Tensor]:
    """The members of bank.safetensors for the base frames `frames` [N]; read(i) is base frame i, [H, W, 3] uint8."""
    side = crop_px(fit, quality)
    crops = np.empty((len(frames), side, side, 3), np.uint8)
    for place in np.argsort(frames):  # forwards through the video
        crops[place] = cut(read(int(frames[place])), fit.crop[frames[place]], side)
    alpha, beta, pose = (torch.from_numpy(x[frames]) for x in (fit.alpha, fit.beta, fit.pose))
    return {
        "crops": torch.from_numpy(crops),
        "alpha": alpha,
        "beta": beta,
        "pose": pose,
        "frames": torch.from_numpy(frames.astype(np.int32)),
    }

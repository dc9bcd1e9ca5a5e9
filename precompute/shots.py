"""Cuts between shots, from measures of the pictures and of the largest face."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

CUT_CHANGE = 0.25  # share of the colours that change at a cut; camera and head motion stay below 0.16
JUMP = 0.12  # face heights between two frames, with the whole picture changing at once: a cut inside one scene
SUDDEN_TIMES, SUDDEN_LEVELS = 5.0, 4.0  # the usual motion, and grey levels more: a turning head moves several frames
USUAL_S = 1.0


def cuts(change: np.ndarray, motion: np.ndarray, centre: np.ndarray, height: np.ndarray, rate_hz: float) -> np.ndarray:
    """The frames that begin a shot: the colours of the whole picture change, or picture and face jump together.

    change [T]: share of the colours that differ from the frame before.  motion [T]: mean difference of a thumbnail in
    grey levels.  centre [T, 2], height [T]: of the largest face, NaN without one.
    """
    jump = np.zeros(len(change))
    with np.errstate(invalid="ignore"):
        moved = np.linalg.norm(np.diff(centre, axis=0), axis=1) / height[1:]
        jump[1:] = np.nan_to_num(np.maximum(moved, np.abs(np.diff(np.log(height)))))
    seen = ~np.isnan(height)
    jump[1:][seen[1:] != seen[:-1]] = np.inf
    usual = median_filter(motion, max(3, round(USUAL_S * rate_hz)), mode="nearest")
    sudden = motion > SUDDEN_TIMES * usual + SUDDEN_LEVELS
    return np.flatnonzero((change > CUT_CHANGE) | ((jump > JUMP) & sudden))

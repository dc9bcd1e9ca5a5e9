"""Measures of moving lips, predicted against recorded: lip landmarks [T, L, 3] and openings [T]."""

from __future__ import annotations

import numpy as np
import torch
from dtaidistance import dtw
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from torch import Tensor

from engine.models.speech import FRAME_SAMPLES
from training.evaluate.measures import frechet

FRAME_MS = 40
WARP_FRAMES = 10  # time may be warped by as much
SMOOTHING_FRAMES = 1.0
PROMINENCE = 0.15  # of the deviation between the 5th and the 95th percentile: an extremum of the opening
WINDOW_FRAMES = 25


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two curves [T]."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm() + 1e-9))


def deviation(lips: Tensor) -> float:
    """Root of the summed variance of the lip landmarks [T, L, 3]."""
    return float(lips.var(0).sum().sqrt())


def jerk(lips: Tensor) -> float:
    """Mean length of the third difference of lip landmarks [T, L, 3]."""
    return float(torch.linalg.vector_norm(lips.diff(n=3, dim=0), dim=-1).mean())


def shape_distance(lips: Tensor, others: Tensor) -> float:
    """Fréchet distance of two sets of lip shapes [T, L, 3], frontal view, in squared hundredths of the interocular
    distance."""
    return frechet(*(100 * rows[..., :2].flatten(1).double().numpy() for rows in (lips, others)))


def misalignment_ms(opening: Tensor, true: Tensor) -> float:
    """MTM: mean time between the extrema of a true opening [T] and their places in another one [T], by dynamic time
    warping of the derivatives (Keogh and Pazzani 2001)."""
    curves = [gaussian_filter1d(curve.double().numpy(), SMOOTHING_FRAMES) for curve in (true, opening)]
    slopes = [np.gradient(curve) / (curve.std() + 1e-9) for curve in curves]
    path = np.array(dtw.warping_path(*slopes, window=WARP_FRAMES, use_c=True))
    least = PROMINENCE * np.ptp(np.quantile(curves[0], [0.05, 0.95]))
    extrema = np.concatenate([find_peaks(sign * curves[0], prominence=least)[0] for sign in (1, -1)])
    steps = path[np.isin(path[:, 0], extrema)]
    return FRAME_MS * float(np.abs(steps[:, 0] - steps[:, 1]).mean()) if len(steps) else 0.0


def loudness_correlation(pcm: np.ndarray, lips: Tensor) -> float:
    """Correlation, over the seconds of a clip, of the level of pcm [T * 640] in dB and the speed of lips [T, L, 3]."""
    speed = torch.linalg.vector_norm(lips.diff(dim=0), dim=-1).mean(-1)
    seconds = len(lips) // WINDOW_FRAMES
    level = [10 * np.log10(np.square(second).mean() + 1e-8) for second in _seconds(pcm, seconds, FRAME_SAMPLES)]
    motion = [float(second.mean()) for second in _seconds(np.pad(speed.numpy(), (0, 1)), seconds, 1)]
    return correlation(torch.tensor(level, dtype=torch.float32), torch.tensor(motion))


def _seconds(values: np.ndarray, seconds: int, per_frame: int) -> list[np.ndarray]:
    size = WINDOW_FRAMES * per_frame
    return [values[i * size : (i + 1) * size] for i in range(seconds)]

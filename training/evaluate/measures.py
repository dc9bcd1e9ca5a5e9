"""Measures of rendered images: those of the paper's Table 1, and of teeth and sharpness, which Table 1 lacks."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from engine.models.morphable import LIPS_INNER

TOOTH_VALUE, TOOTH_SATURATION = 110, 110  # of 255: least brightness, greatest saturation


def signed(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def psnr(image: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of uint8 [H, W, 3], under weight [H, W]."""
    squared = np.square(image.astype(np.float64) - truth).mean(2)
    mean = squared.mean() if weight is None else (squared * weight).sum() / max(float(weight.sum()), 1e-6)
    return float(10 * np.log10(255**2 / max(float(mean), 1e-3)))


def ssim(image: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004) of uint8 [H, W, 3], mean over channels, under weight [H, W]."""
    # Windows and constants of the paper.
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth, image, channel_axis=2, data_range=255, full=True, **gaussian
    )
    similar = np.asarray(similarity).mean(2)
    return float(similar.mean() if weight is None else (similar * weight).sum() / max(float(weight.sum()), 1e-6))


def sharpness(image: np.ndarray, weight: np.ndarray) -> float:
    """Variance of the Laplacian of the grey image under weight [H, W]."""
    laplacian = cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return float((laplacian**2 * weight).sum() / max(float(weight.sum()), 1e-6))


def mouth_cavity(mesh: np.ndarray, size_px: int) -> np.ndarray:
    """The mask of the inside of the inner lips of mesh [V, 3] px: [size, size] float32, 0 or 1."""
    mask = np.zeros((size_px, size_px), np.uint8)
    cv2.fillPoly(mask, [np.rint(mesh[list(LIPS_INNER), :2] * 16).astype(np.int32)], (1,), shift=4)
    return mask.astype(np.float32)


def teeth(image: np.ndarray, cavity: np.ndarray) -> np.ndarray:
    """The mask of bright, unsaturated pixels inside the mouth: [H, W] float32, 0 or 1."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    tooth: np.ndarray = cavity * ((hsv[..., 2] > TOOTH_VALUE) & (hsv[..., 1] < TOOTH_SATURATION))
    return tooth


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of two sets of features [n, D], as Gaussians (Heusel et al. 2017).

    Also exact for fewer samples than features: the trace of the root of the covariances' product is the nuclear norm of
    the product of the centred sets. Needs O(n³) time.
    """
    a, b = one - one.mean(0), other - other.mean(0)
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt((len(a) - 1) * (len(b) - 1))
    spread = (a**2).sum() / (len(a) - 1) + (b**2).sum() / (len(b) - 1)
    return float(np.square(one.mean(0) - other.mean(0)).sum() + spread - 2 * common)

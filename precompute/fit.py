"""Hybrid geometry estimation (§3.1): closed-form initial coefficients, then optimisation over the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from torch import Tensor

from engine.models.morphable import (
    CROP_PX,
    LIPS_INNER,
    LIPS_OUTER,
    RIGID,
    VERTICES,
    MorphableModel,
    project,
)

LIPS = sorted({*LIPS_OUTER, *LIPS_INNER})
CROP_CENTRE = (0.0, 0.65, 0.0)  # on the face, in model units: the lower face and some background below the chin
CROP_WIDTH = 2.6  # model units
CROP_SMOOTHING_FRAMES = 6.0  # the crop follows the head, but not its jitter
LAPLACE_WEIGHT = 0.2  # lambda of eq. 1
LIP_WEIGHT = 4.0  # of a lip landmark against another
DEPTH_WEIGHT = 0.1  # MediaPipe's depth is a guess: a small weight settles what the image leaves ambiguous
TEMPO_WEIGHT = 0.5
REGULARISATION_WEIGHT = 0.02
RIDGE = 1e-3  # closed form: prior of a coefficient against one squared model unit of weighted error


@dataclass(frozen=True)
class FaceFit:
    """alpha [T, K_s], beta [T, K_e], pose [T, 6] float32; crop [T, 3] int32 as (left, top, size) in frame pixels;
    error_px [T] and lip_error_px [T]: RMS distance of the reprojection from the landmarks, in crop pixels."""

    alpha: np.ndarray
    beta: np.ndarray
    pose: np.ndarray
    crop: np.ndarray
    error_px: np.ndarray
    lip_error_px: np.ndarray


def rigid_poses(points: np.ndarray, model: MorphableModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity (rotation [T, 3, 3], scale [T], translation [T, 3]) from the mean face to points [T, V, 3].

    Fitted to the points that speech does not move (Umeyama 1991).
    """
    source = model.mean.numpy().astype(np.float64)[list(RIGID)]
    target = points[:, list(RIGID)].astype(np.float64)
    source_centre, target_centre = source.mean(0), target.mean(1)
    a, b = source - source_centre, target - target_centre[:, None]
    u, s, vt = np.linalg.svd(np.einsum("tvi,vj->tij", b, a))
    sign = np.ones((len(points), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    scale = (s * sign).sum(-1) / (a**2).sum()
    translation = target_centre - scale[:, None] * np.einsum("tij,j->ti", rotation, source_centre)
    return rotation, scale, translation


def crop_boxes(rotation: np.ndarray, scale: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Square boxes [T, 3] int32 (left, top, size) in frame pixels that follow the head smoothly."""
    centre = scale[:, None] * np.einsum("tij,j->ti", rotation, CROP_CENTRE) + translation
    smooth = gaussian_filter1d(
        np.column_stack([centre[:, :2], CROP_WIDTH * scale]), CROP_SMOOTHING_FRAMES, axis=0, mode="nearest"
    )
    size = np.rint(smooth[:, 2])
    return np.column_stack([np.rint(smooth[:, :2] - size[:, None] / 2), size]).astype(np.int32)


def to_crop(points: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Points [T, V, 3] in frame pixels to crop pixels, for crops [T, 3]; the centre of a pixel lies at +0.5."""
    scale = (CROP_PX / crop[:, 2]).astype(np.float32)[:, None, None]
    shift = np.pad(crop[:, :2], ((0, 0), (0, 1))).astype(np.float32)[:, None]
    return (points - shift) * scale


def _ridge(rows: Tensor, basis: Tensor, weight: Tensor) -> Tensor:
    """Coefficients [..., K] of rows [..., V, 3] on basis [K, V, 3] by weighted ridge regression."""
    flat = (basis * weight[:, None]).flatten(1)
    gram = flat @ flat.T + RIDGE * torch.eye(len(flat))
    return torch.linalg.solve(gram, flat @ (rows * weight[:, None]).flatten(-2).transpose(-1, -2)).transpose(-1, -2)


def _norms(rows: Tensor) -> Tensor:
    """Mean Euclidean norm over all but the last axis; smooth at zero."""
    return (rows.square().sum(-1) + 1e-8).sqrt().mean()


def _laplacian(rows: Tensor) -> Tensor:
    return rows[2:] - 2 * rows[1:-1] + rows[:-2]


def fit(
    points: np.ndarray,
    model: MorphableModel,
    *,
    iterations: int = 40,
    on_iteration: Callable[[int], None] = lambda _: None,
) -> FaceFit:
    """Fit landmarks [T, >=468, 3] in frame pixels (no gaps, T >= 3).

    Minimises the landmark distance + L_tempo (eq. 1) + L_reg (eq. 2), each a mean over its terms. Calls
    `on_iteration(i)` after iteration i, counted from 0.
    """
    points = points[:, :VERTICES]
    rotation, scale, translation = rigid_poses(points, model)
    crop = crop_boxes(rotation, scale, translation)
    weight = torch.ones(VERTICES)
    weight[LIPS] = LIP_WEIGHT
    canonical = np.einsum("tij,tvi->tvj", rotation, points - translation[:, None]) / scale[:, None, None]
    centred = torch.tensor(canonical, dtype=torch.float32) - model.mean
    alpha_init = _ridge(centred.mean(0, keepdim=True), model.shape_basis, weight.sqrt()).expand(len(points), -1)
    beta_init = _ridge(centred - model.shape(alpha_init), model.expression_basis, weight.sqrt())
    width = crop[:, 2].astype(np.float64)
    shift = (translation[:, :2] - crop[:, :2]) / width[:, None]
    pose_init = torch.tensor(
        np.column_stack([Rotation.from_matrix(rotation).as_rotvec(), scale / width, shift]), dtype=torch.float32
    )
    target = torch.tensor(to_crop(points, crop))
    target = target - (target - project(model.mean, pose_init))[..., 2:].mean(1, keepdim=True) * torch.tensor(
        [0, 0, 1.0]
    )

    alpha, beta, pose = (x.clone().requires_grad_() for x in (alpha_init, beta_init, pose_init))
    optimiser = torch.optim.Adam([{"params": [alpha, beta], "lr": 0.02}, {"params": [pose], "lr": 5e-4}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=1e-5)
    axes = torch.tensor([1.0, 1.0, DEPTH_WEIGHT])
    for iteration in range(iterations):
        optimiser.zero_grad()
        projected = project(model.vertices(alpha, beta), pose)
        landmark = (((projected - target) * axes).square().sum(-1) * weight).mean()
        tempo = _norms((projected.diff(dim=0) - target.diff(dim=0))[..., :2]) + LAPLACE_WEIGHT * (
            _norms(_laplacian(pose)) + _norms(_laplacian(beta))
        )
        prior = _norms(alpha - alpha_init.mean(0)) + _norms(beta - beta_init) + _norms(pose - pose_init)
        (landmark + TEMPO_WEIGHT * tempo + REGULARISATION_WEIGHT * prior).backward()
        optimiser.step()
        schedule.step()
        on_iteration(iteration)
    with torch.no_grad():
        squared = (project(model.vertices(alpha, beta), pose) - target)[..., :2].square().sum(-1)
    return FaceFit(
        alpha=alpha.detach().numpy(),
        beta=beta.detach().numpy(),
        pose=pose.detach().numpy(),
        crop=crop,
        error_px=squared.mean(1).sqrt().numpy(),
        lip_error_px=squared[:, LIPS].mean(1).sqrt().numpy(),
    )

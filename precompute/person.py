"""The speaker after the fit: tracks, the mouth at rest, usable frames and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.avatar.loop import Loop
from engine.backends.backend import Backend
from engine.models.morphable import MorphableModel, mouth_opening
from engine.paint.painter import FittedVideo, PicturePainter
from precompute import bank
from precompute.assessment import Assessment
from precompute.fit import FaceFit, fit
from precompute.loop import find_loop
from precompute.occlusion import TOUCHED
from precompute.rest import rest_expression
from precompute.scan import Scan
from precompute.track import fill_gaps

FIT_ITERATIONS = 40


@dataclass(frozen=True, kw_only=True)
class Person:
    """The speaker over the n frames of the base video.

    landmarks [n, 478, 3] in base pixels; alpha [n, K_s], beta [n, K_e], pose [n, 6], crop [n, 3] as in FaceFit;
    opening [n] of the mouth in model units; rest_beta [K_e]; good [n] bool: usable as a lip reference.
    """

    landmarks: np.ndarray
    fit: FaceFit
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: Tensor
    opening: np.ndarray
    rest_beta: Tensor
    good: np.ndarray
    loop: Loop

    def painter(
        self,
        read: Callable[[int], np.ndarray],
        references: dict[str, Tensor],
        model: MorphableModel,
        backend: Backend,
    ) -> PicturePainter:
        """A painter of this person; read(i) is frame i of the base video, [H, W, 3] uint8."""
        base = FittedVideo(read=read, alpha=self.alpha, beta=self.beta, pose=self.pose, crop=self.crop)
        return backend.painter(base, Bank(**references), model)


def fit_person(
    scan: Scan,
    assessment: Assessment,
    size: tuple[int, int],
    model: MorphableModel,
    *,
    on_iteration: Callable[[int, int], None] = lambda *_: None,
) -> Person:
    """Fit the face model to the used stretch, in pixels of a base video of `size` (width, height).

    `on_iteration(done, total)` is called after every iteration.
    """
    use = assessment.use
    scale = np.array([size[0] / scan.width, size[1] / scan.height, size[0] / scan.width], np.float32)
    landmarks = fill_gaps(scan.landmarks.points[use]) * scale
    with torch_threads(1):  # more threads slow down work on small tensors
        face = fit(
            landmarks,
            model,
            iterations=FIT_ITERATIONS,
            on_iteration=lambda iteration: on_iteration(iteration + 1, FIT_ITERATIONS),
        )
    alpha, beta = torch.from_numpy(face.alpha), torch.from_numpy(face.beta)
    visible = scan.landmarks.tracked[use] & ~(scan.mouth_covered[use] > TOUCHED)
    good = bank.good_frames(face, visible, scan.sharpness[use], assessment.yaw_deg)
    return Person(
        landmarks=landmarks,
        fit=face,
        alpha=alpha,
        beta=beta,
        pose=torch.from_numpy(face.pose),
        crop=torch.from_numpy(face.crop),
        opening=mouth_opening(model.vertices(alpha, beta)).numpy(),
        rest_beta=rest_expression(model, alpha, beta, good),
        good=good,
        loop=find_loop(face.pose, face.crop, scan.thumbnails[use]),
    )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

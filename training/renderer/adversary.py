"""The judges of the adversarial loss: small patch discriminators, one for the lips and one for the pasted face."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 32
DETAIL_PX, DETAIL_GAIN = 5, 8.0  # detail finer than a box of 5 px is amplified; coarser detail is copied anyway


class PatchJudge(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] and their PNCC [B, 3, H, W] to one score per patch of about 22 px, high for
    recorded and low for rendered images. Spectrally normalised (Miyato et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(9, WIDTH, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(WIDTH, 2 * WIDTH, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * WIDTH, 1, 3, padding=1)),
        )

    def forward(self, images: Tensor, pncc: Tensor) -> Tensor:
        coarse = functional.avg_pool2d(images, DETAIL_PX, 1, DETAIL_PX // 2, count_include_pad=False)
        detail = (images - coarse) * DETAIL_GAIN
        scores: Tensor = self.layers(torch.cat([images, detail, pncc * 2 - 1], 1))
        return scores


class Judges(nn.Module):
    """The judge of the lips and the judge of the face, separate as the lips are a tenth of the face and most detail."""

    def __init__(self) -> None:
        super().__init__()
        self.lips, self.face = PatchJudge(), PatchJudge()

    def forward(self, lips: Tensor, lip_pncc: Tensor, face: Tensor, pncc: Tensor) -> tuple[Tensor, Tensor]:
        return self.lips(lips, lip_pncc), self.face(face, pncc)


def judging_loss(truth: tuple[Tensor, Tensor], rendered: tuple[Tensor, Tensor]) -> Tensor:
    """The judges' hinge loss on their scores of recorded and of rendered images."""
    parts = [torch.relu(1 - t).mean() + torch.relu(1 + r).mean() for t, r in zip(truth, rendered, strict=True)]
    return torch.stack(parts).sum()


def convincing_loss(rendered: tuple[Tensor, Tensor]) -> Tensor:
    """The renderer's loss on the judges' scores of its images: low for high scores."""
    return -torch.stack([scores.mean() for scores in rendered]).sum()

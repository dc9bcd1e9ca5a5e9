"""Two small networks that judge lips, for evaluation only, trained on the training people.

`SyncExpert` judges whether lips and speech are synchronous, by offset and confidence, in the manner of SyncNet (Chung
and Zisserman 2016). `StyleExpert` recognises people by the motion of their lips: the encoder of StyleSim (§4.1), a
transformer with attention pooling as in Sun et al. 2023.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.geometry.corpus import Example, Item
from training.geometry.loss import GeometryLoss
from training.optimisation import Optimisation

log = logging.getLogger(__name__)

MAX_LAG_FRAMES = 15  # as in SyncNet
CROP_FRAMES = 64
STYLE_CROP_FRAMES = 75
SPREAD = 0.02  # model units: about the deviation of a lip vertex, so that inputs are about 1


class SyncExpert(nn.Module):
    """Speech features [B, T, D] and lower-face offsets [B, T, V_low, 3] to unit vectors [B, T, 64] of five frames."""

    lips: Tensor

    def __init__(self, features: int, lips: Tensor, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("lips", lips)
        self.hear = _tower(features, width)
        self.see = _tower(3 * int(lips.sum()), width)
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def sound(self, features: Tensor) -> Tensor:
        """Unit vectors [B, T, 64] of speech features [B, T, D]."""
        return nn.functional.normalize(self.hear(features.transpose(1, 2)), dim=1).transpose(1, 2)

    def picture(self, offsets: Tensor) -> Tensor:
        """Unit vectors [B, T, 64] of lower-face offsets [B, T, V_low, 3]."""
        moving = (offsets - offsets.mean(1, keepdim=True))[:, :, self.lips].flatten(2) / SPREAD
        return nn.functional.normalize(self.see(moving.transpose(1, 2)), dim=1).transpose(1, 2)

    def loss(self, features: Tensor, offsets: Tensor, known: Tensor) -> Tensor:
        """InfoNCE: the sound of each frame selects its picture among those of the clip, and vice versa.

        Neighbouring frames count neither as right nor as wrong.  known [B, T]: 0 or 1.
        """
        likeness = self.sound(features) @ self.picture(offsets).transpose(1, 2) * self.sharpness.exp()
        frames = likeness.shape[1]
        distance = (torch.arange(frames)[:, None] - torch.arange(frames)).abs()
        likeness = likeness.masked_fill(distance == 1, -1e4).masked_fill(known[:, None] == 0, -1e4)
        truth = torch.arange(frames).expand(len(likeness), -1)
        both = nn.functional.cross_entropy(likeness.transpose(1, 2), truth, reduction="none")
        both = both + nn.functional.cross_entropy(likeness, truth, reduction="none")
        return (both * known).sum() / known.sum()

    @torch.inference_mode()
    def judge(self, features: Tensor, offsets: Tensor) -> tuple[int, float]:
        """The lag of the lips [T, V_low, 3] behind the sound [T, D] in frames, and the confidence: the highest mean
        likeness over all lags less the median one."""
        sound, picture = self.sound(features[None])[0], self.picture(offsets[None])[0]
        curve = []
        for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1):
            early = sound[max(0, -lag) : len(sound) - max(0, lag)]
            late = picture[max(0, lag) : len(picture) - max(0, -lag)]
            curve.append(float((early * late).sum(-1).mean()))
        return int(np.argmax(curve)) - MAX_LAG_FRAMES, max(curve) - float(np.median(curve))


def _tower(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, width, 1),
        nn.GELU(),
        nn.Conv1d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Conv1d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Conv1d(width, 64, 1),
    )


class StyleExpert(nn.Module):
    """Lower-face offsets [B, T, V_low, 3] to a unit style vector [B, 64]."""

    def __init__(self, vertices: int, width: int = 96) -> None:
        super().__init__()
        self.enter = nn.Linear(3 * vertices, width)
        self.shift = nn.Conv1d(width, width, 5, padding=2)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.weigh = nn.Linear(width, 1)
        self.leave = nn.Linear(width, 64)
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, offsets: Tensor) -> Tensor:
        x = self.enter(offsets.flatten(2) / SPREAD)
        x = self.mix(x + self.shift(x.transpose(1, 2)).transpose(1, 2))
        return nn.functional.normalize(self.leave((self.weigh(x).softmax(1) * x).sum(1)), dim=-1)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """InfoNCE on two stretches [B, T, V_low, 3] of each of B people: each selects the other of its person."""
        likeness = self(first) @ self(second).T * self.sharpness.exp()
        truth = torch.arange(len(likeness))
        return nn.functional.cross_entropy(likeness, truth) + nn.functional.cross_entropy(likeness.T, truth)


def sync_expert(
    items: list[Item], measure: GeometryLoss, lips: Tensor, checkpoint: Path, steps: int = 500
) -> SyncExpert:
    """Train on the items of the training clips; resumes from `checkpoint`."""
    torch.manual_seed(0)
    optimisation = Optimisation(
        SyncExpert(items[0].features.shape[1], lips), checkpoint, steps=steps, learning_rate=1e-3
    )
    rng = np.random.default_rng(optimisation.step)
    long = [item for item in items if int(item.known.sum()) >= CROP_FRAMES]
    chance = np.array([len(item.beta) for item in long], np.float64) ** 0.5
    for step in optimisation.steps():
        crops = []
        for which in rng.choice(len(long), 24, p=chance / chance.sum()):
            first = int(rng.integers(0, len(long[which].beta) - CROP_FRAMES + 1))
            crops.append((long[which], slice(first, first + CROP_FRAMES)))
        features, beta, known = (
            torch.stack([getattr(i, n)[s] for i, s in crops]) for n in ("features", "beta", "known")
        )
        loss = optimisation.module.loss(
            features + 0.3 * features.std() * torch.randn_like(features), measure.offsets(beta), known
        )
        optimisation.update(loss)
        if step % 100 == 0:
            log.info("sync expert step %d loss %.3f (chance %.3f)", step, loss.item(), 2 * np.log(CROP_FRAMES - 2))
    return optimisation.average.eval()


def style_expert(examples: list[Example], measure: GeometryLoss, checkpoint: Path, steps: int = 400) -> StyleExpert:
    """Train on the expressions of the training people, from different clips where a person has several; resumes."""
    torch.manual_seed(0)
    clips: dict[str, list[Tensor]] = defaultdict(list)
    for example in examples:
        if example.clip.split == "train" and len(example.beta) >= 2 * STYLE_CROP_FRAMES:
            clips[example.clip.identity].append(example.beta)
    people = list(clips.values())
    vertices = measure.offsets(people[0][0][:1]).shape[1]
    optimisation = Optimisation(StyleExpert(vertices), checkpoint, steps=steps, learning_rate=5e-4)
    rng = np.random.default_rng(optimisation.step)
    for step in optimisation.steps():
        halves: tuple[list[Tensor], list[Tensor]] = ([], [])
        for person in rng.choice(len(people), min(48, len(people)), replace=False):
            for half, stretches in enumerate(halves):
                beta = people[person][int(rng.integers(len(people[person])))]
                middle = len(beta) // 2  # the two stretches never overlap
                low, high = (0, middle) if half == 0 else (middle, len(beta))
                first = int(rng.integers(low, high - STYLE_CROP_FRAMES + 1))
                stretches.append(measure.offsets(beta[first : first + STYLE_CROP_FRAMES]))
        loss = optimisation.module.loss(torch.stack(halves[0]), torch.stack(halves[1]))
        optimisation.update(loss)
        if step % 100 == 0:
            log.info("style expert step %d loss %.3f (chance %.3f)", step, loss.item(), 2 * np.log(len(halves[0])))
    return optimisation.average.eval()

"""How much a run of rendered pictures flickers, against the recording that it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import Bank
from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, DualAttentionRenderer, References
from engine.paint.align import Aligner, Reference, Shape
from engine.paint.painter import FittedVideo, Painter
from engine.paint.window import Window
from training.evaluate.measures import signed
from training.renderer.lpips import Lpips
from training.renderer.samples import ClipFaces

RUN_FRAMES = 8
BANK = 25


class _Network:
    """The renderer alone, as a painter wants it."""

    def __init__(self, network: DualAttentionRenderer):
        self._network = network

    @torch.inference_mode()
    def render(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        pixels: Tensor = self._network(pncc, lip_mask, lip_cell, lips, faces)
        return pixels


@dataclass(frozen=True)
class Run:
    """Frames in a row: crops [256, 256, 3] uint8 and the shapes that they show."""

    crops: list[np.ndarray]
    shapes: list[Shape]


def driven_run(
    network: DualAttentionRenderer, faces: ClipFaces, model: MorphableModel, frames: int = RUN_FRAMES
) -> tuple[Run, Run]:
    """A run of the clip with the mouths of another one, painted as the engine paints, and the same run as recorded."""
    starts = [i for i in range(len(faces) - frames) if faces.index[i + frames - 1] - faces.index[i] == frames - 1]
    base, mouth = starts[0], starts[-1]
    recorded = list(range(base, base + frames))
    far = [int(row) for row in np.argsort(faces.opening, kind="stable") if row not in recorded]
    bank = [far[i] for i in np.linspace(0, len(far) - 1, min(BANK, len(far))).round().astype(int)]
    box = torch.tensor([0, 0, CROP_PX], dtype=torch.int32)
    footage = FittedVideo(
        read=faces.crop, alpha=faces.alpha, beta=faces.beta, pose=faces.poses, crop=box.expand(len(faces), 3)
    )
    references = Bank(
        crops=torch.from_numpy(np.stack([faces.crop(row) for row in bank])),
        alpha=faces.alpha[bank],
        beta=faces.beta[bank],
        pose=faces.poses[bank],
        frames=torch.tensor(bank, dtype=torch.int32),
    )
    painter, aligner = Painter(_Network(network), footage, references, model), Aligner(model)
    painted, shapes = [], []
    for i, row in enumerate(recorded):
        lower = faces.canonical[mouth + i][model.lower]
        painted.append(painter.paint(row, lower))
        vertices = faces.canonical[row].clone()
        vertices[model.lower] = lower
        shapes.append(aligner.shape(vertices, faces.neutral[row], faces.poses[row]))
    as_recorded = [aligner.shape(faces.canonical[row], faces.neutral[row], faces.poses[row]) for row in recorded]
    return Run(painted, shapes), Run([faces.crop(row) for row in recorded], as_recorded)


class Flicker:
    """What changes from frame to frame of a run: in LPIPS over the pasted window, and in levels of 255 on the skin
    around the lips, where with the motion of the mesh taken out nothing should."""

    def __init__(self, model: MorphableModel) -> None:
        self._aligner, self._lpips = Aligner(model), Lpips()

    @torch.inference_mode()
    def __call__(self, run: Run) -> dict[str, float]:
        lpips, still = [], []
        window: Window | None = None
        for i in range(len(run.crops) - 1):
            target = self._aligner.target(run.shapes[i], run.shapes[i])
            window = window or target.window
            pair = [signed(crop[window.pixels])[None] for crop in run.crops[i : i + 2]]
            lpips.append(float(self._lpips(*pair)))
            here = signed(run.crops[i][target.window.pixels])
            after = self._aligner.faces(target, [Reference(run.crops[i + 1], run.shapes[i + 1])]).pixels[0, 0]
            lips = np.kron(target.lip_mask > 0, np.ones((CELL_PX, CELL_PX), bool))
            skin = torch.from_numpy((target.paste_mask > 0.5) & ~lips & (target.coverage.triangle >= 0))
            still.append(float((after - here).abs().mean(0)[skin].mean()) * 127.5)
        return {"temporal_lpips": float(np.mean(lpips)), "still_difference": float(np.mean(still))}

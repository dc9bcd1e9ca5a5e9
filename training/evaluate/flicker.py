"""Flicker of consecutive rendered frames, compared with that of the recorded base frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.avatar.file import Bank
from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, DualAttentionRenderer
from engine.paint.align import Aligner, Reference
from engine.paint.painter import CpuPainter, FittedVideo
from engine.paint.shape import LIPS, Shape
from engine.paint.window import Window
from precompute.bank import choose
from training.evaluate.measures import mouth_cavity, psnr, sharpness, signed
from training.renderer.lpips import Lpips
from training.renderer.samples import ClipFaces

SEQUENCE_FRAMES = 8
MIN_CAVITY_PX = 90


@dataclass(frozen=True)
class Sequence:
    """Consecutive frames: crops [256, 256, 3] uint8 and their shapes."""

    crops: list[np.ndarray]
    shapes: list[Shape]


@torch.inference_mode()
def driven_sequences(
    network: DualAttentionRenderer, faces: ClipFaces, model: MorphableModel, frames: int = SEQUENCE_FRAMES
) -> dict[str, Sequence]:
    """A stretch of the clip with the mouths of another one: `ours` with every picture rendered, `half` with every
    second one laid from the picture before it, and the same stretch as `recorded`."""
    starts = [i for i in range(len(faces) - frames) if faces.index[i + frames - 1] - faces.index[i] == frames - 1]
    base, mouth = starts[0], starts[-1]
    rows = list(range(base, base + frames))
    painter = clip_painter(network, faces, model, without=rows)
    driven = [(row, faces.canonical[mouth + i][model.lower]) for i, row in enumerate(rows)]
    shapes = []
    for row, lower in driven:
        vertices = faces.canonical[row].clone()
        vertices[model.lower] = lower
        shapes.append(Shape.posed(vertices, faces.neutral[row], faces.poses[row]))
    pairs = [driven[i : i + 2] for i in range(0, frames, 2)]
    rendered = [painter.paint(row, lower) for row, lower in driven]
    (*halves,) = painter.paint_together([(painter, pair, True) for pair in pairs])
    as_recorded = [Shape.posed(faces.canonical[row], faces.neutral[row], faces.poses[row]) for row in rows]
    return {
        "ours": Sequence(rendered, shapes),
        "half": Sequence([picture for pair in halves for picture in pair], shapes),
        "recorded": Sequence([faces.crop(row) for row in rows], as_recorded),
    }


def clip_painter(
    network: DualAttentionRenderer, faces: ClipFaces, model: MorphableModel, without: list[int]
) -> CpuPainter:
    """The engine's painter for the clip, with a bank of other rows than `without`."""
    others = ~np.isin(np.arange(len(faces)), without)
    bank = choose(faces.opening, faces.canonical[:, LIPS].numpy(), faces.poses[:, :3].numpy(), others).tolist()
    box = torch.tensor([0, 0, CROP_PX], dtype=torch.int32)
    video = FittedVideo(
        read=faces.crop, alpha=faces.alpha, beta=faces.beta, pose=faces.poses, crop=box.expand(len(faces), 3)
    )
    references = Bank(
        crops=torch.from_numpy(np.stack([faces.crop(row) for row in bank])),
        alpha=faces.alpha[bank],
        beta=faces.beta[bank],
        pose=faces.poses[bank],
        frames=torch.tensor(bank, dtype=torch.int32),
    )
    return CpuPainter(network, video, references, model)


class LaidPictures:
    """The pictures of `half` that were laid, against the rendered ones: PSNR of the lips in dB, LPIPS of the pasted
    window, and the energy of the lips' detail relative to the rendered ones."""

    def __init__(self, model: MorphableModel) -> None:
        self._aligner, self._lpips = Aligner(model), Lpips()

    @torch.inference_mode()
    def __call__(self, rendered: Sequence, half: Sequence) -> dict[str, float]:
        rows = []
        for i in range(1, len(half.crops), 2):
            target = self._aligner.target(half.shapes[i], half.shapes[i])
            lips = np.zeros((CROP_PX, CROP_PX))
            lips[target.window.pixels] = np.kron(target.lip_mask > 0, np.ones((CELL_PX, CELL_PX)))
            ours, laid = rendered.crops[i], half.crops[i]
            pair = [signed(crop[target.window.pixels])[None] for crop in (ours, laid)]
            detail = sharpness(laid, lips) / max(sharpness(ours, lips), 1e-8)
            rows.append((psnr(laid, ours, lips), float(self._lpips(*pair)), detail))
        names = ("laid_lips_psnr", "laid_lpips", "laid_sharpness")
        return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


class Flicker:
    """The change from frame to frame: `temporal_lpips`, LPIPS over the pasted window, and `still_difference`, levels of
    255 on the skin around the lips, which would be 0 for a recording without noise once the motion of the mesh is
    removed. `inside`: the same inside the inner lips, where they are open, else missing."""

    def __init__(self, model: MorphableModel) -> None:
        self._aligner, self._lpips = Aligner(model), Lpips()

    @torch.inference_mode()
    def __call__(self, sequence: Sequence) -> dict[str, float]:
        lpips, still, inside = [], [], []
        window: Window | None = None
        for i in range(len(sequence.crops) - 1):
            target = self._aligner.target(sequence.shapes[i], sequence.shapes[i])
            window = window or target.window
            pair = [signed(crop[window.pixels])[None] for crop in sequence.crops[i : i + 2]]
            lpips.append(float(self._lpips(*pair)))
            here = signed(sequence.crops[i][target.window.pixels])
            after = self._aligner.faces(target, [Reference(sequence.crops[i + 1], sequence.shapes[i + 1])]).pixels[0, 0]
            lips = np.kron(target.lip_mask > 0, np.ones((CELL_PX, CELL_PX), bool))
            skin = torch.from_numpy((target.paste_mask > 0.5) & ~lips & (target.coverage.triangle >= 0))
            change = (after - here).abs().mean(0) * 127.5
            still.append(float(change[skin].mean()))
            cavity = mouth_cavity(sequence.shapes[i].mesh, CROP_PX)[target.window.pixels] > 0
            if cavity.sum() >= MIN_CAVITY_PX:
                inside.append(float(change[torch.from_numpy(cavity)].mean()))
        figures = {"temporal_lpips": float(np.mean(lpips)), "still_difference": float(np.mean(still))}
        return figures | ({"inside": float(np.mean(inside))} if inside else {})

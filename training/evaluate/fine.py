"""Pictures at 512 px of unseen people: painted at 512 px, and painted at 256 px and enlarged.

The frames are those of `training.evaluate.renderer`: `same` renders a frame from others of its clip, `crossed` its
mouth on a frame with another mouth. Both pictures are pasted into the same crop of 512 px, as the engine pastes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import FINE, DualAttentionRenderer
from engine.paint.align import Aligner, Reference
from engine.paint.composite import cut, paste
from engine.paint.references import LIP_REFERENCES, nearest
from engine.paint.shape import Shape
from precompute.bank import FINE_FROM_PX
from precompute.video import read_frames
from training.data.clips import fit_path, load_fit
from training.evaluate.cases import Cast
from training.evaluate.measures import psnr, sharpness, signed
from training.renderer.lpips import Lpips
from training.renderer.samples import ClipFaces

SIDE_PX = FINE * CROP_PX
BOX = np.array([0, 0, SIDE_PX])  # the crop is the whole frame
SIDES_PX = {"fast": CROP_PX, "best": SIDE_PX}


class FineClip:
    """The frames of `faces` as crops of 512 px."""

    def __init__(self, faces: ClipFaces, runs: Path):
        self.faces = faces
        fit, start = load_fit(fit_path(runs, faces.clip))
        rows = {start + int(n): row for row, n in enumerate(faces.index)}
        self._crops = {
            rows[n]: cut(image, fit.crop[n - start], SIDE_PX)
            for n, image in enumerate(read_frames(faces.clip.path))
            if n in rows
        }

    def crop(self, row: int, side_px: int = SIDE_PX) -> np.ndarray:
        """[side_px, side_px, 3] uint8."""
        return cut(self._crops[row], BOX, side_px)


def is_large(faces: ClipFaces, runs: Path) -> bool:
    """Whether an avatar of the clip would be painted at 512 px."""
    fit, _ = load_fit(fit_path(runs, faces.clip))
    return float(np.median(fit.crop[:, 2])) >= FINE_FROM_PX


@dataclass
class FineMeasures:
    """Renders casts in the qualities `fast` and `best`; `figures` has a list of values for each name."""

    network: DualAttentionRenderer
    model: MorphableModel
    figures: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._aligner, self._lpips = Aligner(self.model), Lpips()

    def __call__(self, clip: FineClip, cast: Cast) -> list[np.ndarray]:
        """Measure one cast; returns the windows [h, w, 3] uint8 of the truth, of `fast` and of `best`."""
        truth = clip.crop(cast.target)
        shown = [truth]
        for quality, side_px in SIDES_PX.items():
            crop, mask = self.picture(clip, cast, side_px)
            rows, columns = (slice(i.min(), i.max() + 1) for i in np.nonzero(mask))
            for name, value in self._measured(crop, truth, mask, (rows, columns)):
                self.figures[f"fine_{cast.kind}/{name}/{quality}"].append(value)
            shown.append(crop)
        return [image[rows, columns] for image in shown]

    def _measured(
        self, crop: np.ndarray, truth: np.ndarray, mask: np.ndarray, part: tuple[slice, slice]
    ) -> Iterator[tuple[str, float]]:
        pasted = np.where(mask[..., None] > 0, crop, truth)[part]
        yield "lpips", float(self._lpips(signed(pasted)[None], signed(truth[part])[None]))
        yield "psnr", psnr(crop, truth, mask)
        yield "sharpness", (sharpness(crop, mask) / max(sharpness(truth, mask), 1e-8)) ** 0.5

    @torch.inference_mode()
    def picture(self, clip: FineClip, cast: Cast, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """The crop [512, 512, 3] uint8 painted from references of `side_px`, and the mask [512, 512] of painting."""
        shapes = {row: self._shape(clip.faces, row) for row in {cast.target, cast.base, *cast.near, *cast.bank}}
        aim = self._aligner.target(shapes[cast.target], shapes[cast.base])
        candidates = cast.bank + cast.near
        similar = nearest(aim.shape, [shapes[row] for row in candidates], LIP_REFERENCES)
        faces, lips = (
            [Reference(clip.crop(row, side_px), shapes[row]) for row in rows]
            for rows in (cast.near, [candidates[i] for i in similar])
        )
        pixels = self.network(
            torch.from_numpy(aim.pncc)[None],
            torch.from_numpy(aim.lip_mask)[None, None],
            torch.tensor([(aim.lips.row, aim.lips.column)]),
            self._aligner.lips(aim, lips),
            self._aligner.faces(aim, faces),
        )[0]
        painted = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        mask = np.zeros((CROP_PX, CROP_PX))
        mask[aim.window.pixels] = aim.paste_mask > 0.5
        return paste(clip.crop(cast.base), BOX, aim.window, painted, aim.paste_mask), np.kron(
            mask, np.ones((FINE, FINE))
        )

    def _shape(self, faces: ClipFaces, row: int) -> Shape:
        return Shape.posed(faces.canonical[row], faces.neutral[row], faces.poses[row])

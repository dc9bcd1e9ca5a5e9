"""Samples for the renderer: a target frame and the references that may be shown for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from engine.align import Aligner, Reference, Shape
from engine.models.morphable import MorphableModel, mouth_opening
from engine.models.renderer import CELL_PX, RendererConfig
from training.data import Clip, crops_path, fit_path, load_fit


@dataclass(frozen=True)
class Sample:
    """One training example, as `DualAttentionRenderer` takes it. Pixels are float32 in [-1, 1].

    pncc [3, H, W]; lip_mask [1, rows, columns]; lip_cell [2]; lip_pixels [N_l, 3, h, w], lip_difference;
    face_pixels [N_f, 3, H, W], face_difference; truth [3, H, W]; paste [1, H, W] in [0, 1]; base [3, H, W]: the base
    frame as it is, at the target's place.
    """

    pncc: Tensor
    lip_mask: Tensor
    lip_cell: Tensor
    lip_pixels: Tensor
    lip_difference: Tensor
    face_pixels: Tensor
    face_difference: Tensor
    truth: Tensor
    paste: Tensor
    base: Tensor


class ClipFaces:
    """The crops of one clip with their geometry: canonical, neutral [n, V, 3], poses [n, 6]; crops are read when asked
    for."""

    def __init__(self, clip: Clip, runs: Path, model: MorphableModel):
        self.clip = clip
        self._file = safe_open(crops_path(runs, clip), "np")
        self.index: np.ndarray = self._file.get_tensor("index")
        fit, _ = load_fit(fit_path(runs, clip))
        alpha, beta, self.poses = (torch.tensor(x[self.index]) for x in (fit.alpha, fit.beta, fit.pose))
        self.canonical = model.vertices(alpha, beta)
        self.neutral = model.vertices(alpha, torch.zeros_like(beta))
        self.opening: np.ndarray = mouth_opening(self.canonical).numpy()
        self.pose = fit.pose[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def crop(self, row: int) -> np.ndarray:
        """[256, 256, 3] uint8."""
        crop: np.ndarray = self._file.get_slice("crops")[row : row + 1][0]
        return crop


class Augmentation:
    """One random change of colour for all images of a sample, and whether left and right are exchanged."""

    def __init__(self, rng: np.random.Generator):
        self.mirror = rng.random() < 0.5
        self._gain = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.85, 1.15)
        self._gamma = rng.uniform(0.8, 1.25)

    def image(self, crop: np.ndarray) -> np.ndarray:
        table = (np.linspace(0, 1, 256)[:, None] ** self._gamma * self._gain * 255).clip(0, 255).astype(np.uint8)
        return cv2.LUT(crop, table[None])


class SampleMaker:
    """Draws windows, masks and aligned references for chosen frames of a clip."""

    def __init__(self, model: MorphableModel, config: RendererConfig):
        self._config = config
        self._aligner = Aligner(model, config)

    def make(
        self,
        faces: ClipFaces,
        target: int,
        near: list[int],
        lips: list[int],
        change: Augmentation | None,
        count: int | None = None,
    ) -> Sample:
        """Frame `target` with face references `near` (the base frame first) and lip references `lips` (the nearest
        `count` of them), all rows of `faces`."""

        def reference(row: int) -> Reference:
            crop = faces.crop(row)
            return Reference(crop if change is None else change.image(crop), self._shape(faces, row))

        base = reference(near[0])
        aim = self._aligner.target(self._shape(faces, target), base.shape)
        face = self._aligner.faces(aim, [base, *(reference(row) for row in near[1:])])
        lip = self._aligner.lips(aim, [reference(row) for row in lips], count or len(lips))
        sample = Sample(
            pncc=torch.from_numpy(aim.pncc),
            lip_mask=torch.from_numpy(aim.lip_mask)[None],
            lip_cell=torch.tensor(aim.lip_cell),
            lip_pixels=lip.pixels[0],
            lip_difference=lip.difference[0],
            face_pixels=face.pixels[0],
            face_difference=face.difference[0],
            truth=self._window(reference(target).crop, aim.cell),
            paste=torch.from_numpy(aim.paste_mask)[None],
            base=self._window(base.crop, aim.cell),
        )
        return mirrored(sample, self._config) if change is not None and change.mirror else sample

    def _shape(self, faces: ClipFaces, row: int) -> Shape:
        return self._aligner.shape(faces.canonical[row], faces.neutral[row], faces.poses[row])

    def _window(self, crop: np.ndarray, cell: tuple[int, int]) -> Tensor:
        top, left = cell[0] * CELL_PX, cell[1] * CELL_PX
        height, width = self._config.face_rows * CELL_PX, self._config.face_columns * CELL_PX
        window = np.ascontiguousarray(crop[top : top + height, left : left + width])
        return torch.from_numpy(window).permute(2, 0, 1).float() / 127.5 - 1


def mirrored(sample: Sample, config: RendererConfig) -> Sample:
    """Left and right exchanged; the code along x and the signs of mirrored offsets and turns with them."""
    flipped = {name: getattr(sample, name).flip(-1) for name in Sample.__dataclass_fields__ if name != "lip_cell"}
    covered = flipped["pncc"].sum(0) > 0
    flipped["pncc"][0] = torch.where(covered, 1 - flipped["pncc"][0], flipped["pncc"][0])
    sign = torch.tensor([-1.0, 1, 1, 1, -1, -1])[:, None, None]  # x offset; turns about y and z
    for name in ("lip_difference", "face_difference"):
        flipped[name] = flipped[name] * sign
    row, column = sample.lip_cell.tolist()
    return Sample(**flipped, lip_cell=torch.tensor([row, config.face_columns - config.lip_columns - column]))


class TrainingSampler:
    """Random samples: people drawn evenly, references as at inference or with another mouth shape than the target's."""

    def __init__(self, clips: list[ClipFaces], maker: SampleMaker, rng: np.random.Generator, *, near: int, lips: int):
        self._people: dict[str, list[ClipFaces]] = {}
        for faces in clips:
            self._people.setdefault(faces.clip.identity, []).append(faces)
        self._names = sorted(self._people)
        self._maker, self._rng, self._near, self._lips = maker, rng, near, lips

    def _centre(self, faces: ClipFaces, target: int) -> int:
        """The base frame: the target itself, or among some random frames the one with the most similar pose."""
        if self._rng.random() < 0.5:
            return target
        options = self._rng.integers(0, len(faces), 8)
        distance = np.abs(faces.pose[options] - faces.pose[target]).sum(1)
        distance -= 0.3 * np.abs(faces.opening[options] - faces.opening[target])  # prefer another mouth
        return int(options[np.argmin(distance)])

    def draw(self) -> Sample:
        clips = self._people[self._names[self._rng.integers(len(self._names))]]
        faces = clips[self._rng.integers(len(clips))]
        target = int(self._rng.integers(len(faces)))
        near = neighbours(faces, self._centre(faces, target), self._near, excluded=target)
        gap = 4 if self._rng.random() < 0.5 else 0  # half of the time without the frames that look just like it
        far = np.flatnonzero(np.abs(faces.index - faces.index[target]) > gap)
        lips = self._rng.choice(far, self._lips, replace=len(far) < self._lips)
        return self._maker.make(faces, target, near, [int(row) for row in lips], Augmentation(self._rng))


def neighbours(faces: ClipFaces, centre: int, count: int, *, excluded: int) -> list[int]:
    """The `count` rows nearest in time to `centre`, itself first, without `excluded`."""
    order = np.argsort(np.abs(faces.index - faces.index[centre]), kind="stable")
    return [int(row) for row in order if row != excluded][:count]


def sorted_bank(faces: ClipFaces, count: int, target: int, gap: int) -> list[int]:
    """`count` rows spread evenly over the frames sorted by mouth opening (§3.2), without those within `gap` frames of
    row `target`."""
    far = np.abs(faces.index - faces.index[target]) > gap
    order = [int(row) for row in np.argsort(faces.opening, kind="stable") if far[row]]
    return [order[i] for i in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def collate(samples: list[Sample]) -> Sample:
    """Stack samples along a new first axis."""
    return Sample(*(torch.stack([getattr(s, name) for s in samples]) for name in Sample.__dataclass_fields__))

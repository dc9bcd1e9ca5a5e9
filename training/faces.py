"""Samples for the renderer: a target frame and the references that may be shown for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from engine.compose import face_cells, face_window, lip_mask, lip_window, lip_window_in, paste_mask, pixels_of
from engine.models.morphable import MorphableModel, mouth_opening, project
from engine.models.renderer import CELL_PX, RendererConfig
from engine.raster import rasterise
from training.data import Clip, crops_path, fit_path, load_fit


QUERIES = 704  # of 1280 face cells; 99 % of the samples need fewer, the rest lose cells below the chin


@dataclass(frozen=True)
class Sample:
    """One training example; windows as `DualAttentionRenderer` takes them. Pixels are float32 in [-1, 1].

    pncc [3, H+8, W+8]; lip_mask [1, rows, columns]; lip_cell [2]; cells [QUERIES]; lip_pncc, lip_pixels [N_l, 3, h+8, w+8];
    face_pncc, face_pixels [N_f, 3, H+8, W+8]; truth [3, H, W]; paste [1, H, W] in [0, 1].
    """

    pncc: Tensor
    lip_mask: Tensor
    lip_cell: Tensor
    cells: Tensor
    lip_pncc: Tensor
    lip_pixels: Tensor
    face_pncc: Tensor
    face_pixels: Tensor
    truth: Tensor
    paste: Tensor


def to_signed(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


class ClipFaces:
    """The crops of one clip with their meshes in crop pixels, `meshes` [n, V, 3]; crops are read when asked for."""

    def __init__(self, clip: Clip, runs: Path, model: MorphableModel):
        self.clip = clip
        self._file = safe_open(crops_path(runs, clip), "np")
        self.index: np.ndarray = self._file.get_tensor("index")
        fit, _ = load_fit(fit_path(runs, clip))
        alpha, beta, pose = (torch.tensor(x[self.index]) for x in (fit.alpha, fit.beta, fit.pose))
        canonical = model.vertices(alpha, beta)
        self.meshes: np.ndarray = project(canonical, pose).numpy()
        self.opening: np.ndarray = mouth_opening(canonical).numpy()
        self.pose = fit.pose[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def crop(self, row: int) -> np.ndarray:
        """[256, 256, 3] uint8."""
        crop: np.ndarray = self._file.get_slice("crops")[row : row + 1][0]
        return crop


class Augmentation:
    """One random change of colour and of left and right, applied to all images of a sample alike."""

    def __init__(self, rng: np.random.Generator):
        self.mirror = rng.random() < 0.5
        self._gain = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.85, 1.15)
        self._gamma = rng.uniform(0.8, 1.25)

    def image(self, crop: np.ndarray) -> np.ndarray:
        table = (np.linspace(0, 1, 256)[:, None] ** self._gamma * self._gain * 255).clip(0, 255).astype(np.uint8)
        changed = cv2.LUT(crop, table[None])
        return changed[:, ::-1] if self.mirror else changed


class SampleMaker:
    """Draws windows and masks for chosen frames of a clip."""

    def __init__(self, model: MorphableModel, config: RendererConfig):
        self._config = config
        self._triangles = model.triangles.numpy()
        self._codes = model.codes.numpy()

    def make(
        self, faces: ClipFaces, target: int, near: list[int], lips: list[int], change: Augmentation | None
    ) -> Sample:
        """Frame `target` with face references `near` and lip references `lips`, all rows of `faces`."""
        config = self._config

        def image(row: int, cell: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
            crop = faces.crop(row)
            changed = crop if change is None else change.image(crop)
            return to_signed(pixels_of(np.moveaxis(changed, -1, 0), cell, *size))

        def pncc(row: int) -> np.ndarray:
            drawn = rasterise(faces.meshes[row], self._triangles, self._codes, 256, 256)
            return drawn[..., ::-1] if change is not None and change.mirror else drawn

        def mesh(row: int) -> np.ndarray:
            points = faces.meshes[row]
            return points * (-1, 1, 1) + (256, 0, 0) if change is not None and change.mirror else points

        size = (config.face_rows, config.face_columns)
        lip_size = (config.lip_rows, config.lip_columns)
        cell = face_window(mesh(target), config)
        lip_cells = [lip_window(mesh(row), config) for row in lips]
        lip_share = lip_mask(mesh(target), cell, config)
        pasted = paste_mask(mesh(target), mesh(near[0]), cell, config)
        truth = image(target, cell, size)[..., CELL_PX:-CELL_PX, CELL_PX:-CELL_PX]
        arrays = dict(
            pncc=pixels_of(pncc(target), cell, *size),
            lip_mask=lip_share[None],
            cells=np.resize(face_cells(pasted, lip_share), QUERIES),  # repeated up to a fixed number
            lip_cell=np.array(lip_window_in(mesh(target), cell, config)),
            lip_pncc=np.stack([pixels_of(pncc(r), c, *lip_size) for r, c in zip(lips, lip_cells, strict=True)]),
            lip_pixels=np.stack([image(r, c, lip_size) for r, c in zip(lips, lip_cells, strict=True)]),
            face_pncc=np.stack([pixels_of(pncc(r), cell, *size) for r in near]),
            face_pixels=np.stack([image(r, cell, size) for r in near]),
            truth=truth,
            paste=pasted[None],
        )
        return Sample(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()})


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


def sorted_bank(faces: ClipFaces, count: int, *, excluded: int) -> list[int]:
    """`count` rows spread evenly over the frames sorted by mouth opening (§3.2), without `excluded`."""
    order = [int(row) for row in np.argsort(faces.opening, kind="stable") if row != excluded]
    return [order[i] for i in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def collate(samples: list[Sample]) -> Sample:
    """Stack samples along a new first axis."""
    return Sample(*(torch.stack([getattr(s, name) for s in samples]) for name in Sample.__dataclass_fields__))

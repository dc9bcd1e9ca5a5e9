"""Training samples of the renderer: a target frame and the references to render it from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from engine.models.morphable import CROP_PX, MorphableModel, mouth_opening
from engine.models.renderer import RendererConfig
from engine.paint.align import Aligner, Reference, Target
from engine.paint.references import nearest
from engine.paint.shape import Shape
from engine.paint.window import GRID, Window
from training.data.clips import Clip, crops_path, fit_path, load_fit

CANDIDATES = 20  # random frames of which the lip references of a training sample are the nearest


@dataclass(frozen=True)
class Sample:
    """One training example, as `DualAttentionRenderer` takes it. Pixels are float32 in [-1, 1].

    cell [2]: row and column of the face window in the crop; pncc [3, H, W]; lip_mask [1, rows, columns]; lip_cell [2];
    lip_pixels [N_l, 3, h, w], lip_difference; face_pixels [N_f, 3, H, W], face_difference; truth [3, H, W]; paste
    [1, H, W] in [0, 1]; base [3, H, W]: the base frame as it is, at the target's place.
    """

    cell: Tensor
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
    """The crops of one clip and their geometry: alpha [n, K_s], beta [n, K_e], canonical, neutral [n, V, 3], poses
    [n, 6], opening [n]. index [n]: their rows in the clip's fit. Crops are read from the file at each call."""

    def __init__(self, clip: Clip, runs: Path, model: MorphableModel):
        self.clip = clip
        self._file = safe_open(crops_path(runs, clip), "np")
        self.index: np.ndarray = self._file.get_tensor("index")
        fit, _ = load_fit(fit_path(runs, clip))
        self.alpha, self.beta, self.poses = (torch.tensor(x[self.index]) for x in (fit.alpha, fit.beta, fit.pose))
        self.canonical = model.vertices(self.alpha, self.beta)
        self.neutral = model.mean + model.shape(self.alpha)
        self.opening: np.ndarray = mouth_opening(self.canonical).numpy()
        self.pose = fit.pose[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def crop(self, row: int) -> np.ndarray:
        """[256, 256, 3] uint8."""
        crop: np.ndarray = self._file.get_slice("crops")[row : row + 1][0]
        return crop


class Augmentation:
    """One random change of all images of a sample: colour, size, rotation, compression, and mirroring."""

    def __init__(self, rng: np.random.Generator):
        self.mirror = rng.random() < 0.5
        gain = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.85, 1.15)
        levels = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.8, 1.25) * gain * 255
        self._table = levels.clip(0, 255).astype(np.uint8)[None]
        angle_deg, size = rng.uniform(-8, 8), rng.uniform(0.85, 1.1)
        middle = CROP_PX / 2
        moves = rng.random() < 0.4  # resampling costs sharpness, so most samples stay in place
        self._move = cv2.getRotationMatrix2D((middle, middle), angle_deg, size) if moves else None
        self._jpeg_quality = int(rng.integers(50, 95)) if rng.random() < 0.3 else None

    def image(self, crop: np.ndarray) -> np.ndarray:
        """The changed crop [256, 256, 3] uint8."""
        changed = cv2.LUT(crop, self._table)
        if self._move is not None:
            size = changed.shape[1::-1]
            border = cv2.BORDER_REPLICATE
            changed = cv2.warpAffine(changed, self._move, size, flags=cv2.INTER_CUBIC, borderMode=border)
        if self._jpeg_quality is not None:
            _, packed = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, self._jpeg_quality])
            changed = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        return changed

    def shape(self, shape: Shape) -> Shape:
        """The shape of an image, moved as `image` moves its pixels."""
        if self._move is None:
            return shape
        mesh = shape.mesh.copy()
        # The centre of a pixel lies at a whole number for OpenCV, and half a pixel further in a mesh.
        mesh[:, :2] = (mesh[:, :2] - 0.5) @ self._move[:, :2].T.astype(np.float32) + self._move[:, 2] + 0.5
        mesh[:, 2] *= np.float32(np.hypot(self._move[0, 0], self._move[0, 1]))
        return Shape(mesh, shape.canonical, shape.rotation)


class SampleMaker:
    """Makes samples (windows, masks and aligned references) of chosen frames; `fixed` as in `Aligner`."""

    def __init__(self, model: MorphableModel, fixed: RendererConfig | None = None):
        self._aligner = Aligner(model, fixed)

    def make(
        self,
        faces: ClipFaces,
        targets: list[int],
        near: list[int],
        lips: list[int],
        change: Augmentation | None,
        count: int,
    ) -> list[Sample]:
        """Samples of the rows `targets` of `faces`, in the windows of the first target.

        near: rows of the face references, the base frame first.  lips: rows; the `count` nearest to the first
        target become lip references.
        """

        def reference(row: int) -> Reference:
            crop = faces.crop(row)
            return Reference(crop if change is None else change.image(crop), self._shape(faces, row, change))

        base, *others = (reference(row) for row in near)
        aims: list[Target] = []
        for row in targets:
            aims.append(self._aligner.target(self._shape(faces, row, change), base.shape, aims[0] if aims else None))
        shapes = [self._shape(faces, row, change) for row in lips]
        lip_references = [reference(lips[i]) for i in nearest(aims[0].shape, shapes, count)]
        samples = []
        for row, aim in zip(targets, aims, strict=True):
            face = self._aligner.faces(aim, [base, *others])
            lip = self._aligner.lips(aim, lip_references)
            sample = Sample(
                cell=torch.tensor((aim.window.row, aim.window.column)),
                pncc=torch.from_numpy(aim.pncc),
                lip_mask=torch.from_numpy(aim.lip_mask)[None],
                lip_cell=torch.tensor((aim.lips.row, aim.lips.column)),
                lip_pixels=lip.pixels[0],
                lip_difference=lip.difference[0],
                face_pixels=face.pixels[0],
                face_difference=face.difference[0],
                truth=_pixels(reference(row).crop, aim.window),
                paste=torch.from_numpy(aim.paste_mask)[None],
                base=_pixels(base.crop, aim.window),
            )
            samples.append(mirrored(sample) if change is not None and change.mirror else sample)
        return samples

    def _shape(self, faces: ClipFaces, row: int, change: Augmentation | None) -> Shape:
        shape = Shape.posed(faces.canonical[row], faces.neutral[row], faces.poses[row])
        return shape if change is None else change.shape(shape)


def _pixels(crop: np.ndarray, window: Window) -> Tensor:
    """The window's pixels of a crop, [3, h, w] in [-1, 1]."""
    part = np.ascontiguousarray(crop[window.pixels])
    return torch.from_numpy(part).permute(2, 0, 1).float() / 127.5 - 1


def mirrored(sample: Sample) -> Sample:
    """The sample with left and right exchanged, also in the x code of the PNCC and the signs of offsets and turns."""
    flipped = {n: getattr(sample, n).flip(-1) for n in Sample.__dataclass_fields__ if n not in ("cell", "lip_cell")}
    covered = flipped["pncc"].sum(0) > 0
    flipped["pncc"][0] = torch.where(covered, 1 - flipped["pncc"][0], flipped["pncc"][0])
    sign = torch.tensor([-1.0, 1, 1, 1, -1, -1])[:, None, None]  # x offset; turns about y and z
    for name in ("lip_difference", "face_difference"):
        flipped[name] = flipped[name] * sign
    columns = sample.face_difference.shape[-1]
    row, column = sample.cell.tolist()
    lip_row, lip_column = sample.lip_cell.tolist()
    return Sample(
        **flipped,
        cell=torch.tensor([row, GRID - columns - column]),
        lip_cell=torch.tensor([lip_row, columns - sample.lip_difference.shape[-1] - lip_column]),
    )


class TrainingSampler:
    """Draws random pairs of samples, people evenly. As live, base frames mostly show another mouth than the target."""

    def __init__(self, clips: list[ClipFaces], maker: SampleMaker, rng: np.random.Generator, *, near: int, lips: int):
        self._people: dict[str, list[ClipFaces]] = {}
        for faces in clips:
            self._people.setdefault(faces.clip.identity, []).append(faces)
        self._names = sorted(self._people)
        self._maker, self._rng, self._near, self._lips = maker, rng, near, lips

    def _centre(self, faces: ClipFaces, target: int) -> int:
        """The base frame: the target itself, or among some random frames one of similar pose with another mouth."""
        if self._rng.random() < 0.3:
            return target
        options = self._rng.integers(0, len(faces), 12)
        distance = np.abs(faces.pose[options] - faces.pose[target]).sum(1)
        distance -= np.abs(faces.opening[options] - faces.opening[target])
        return int(options[np.argmin(distance)])

    def draw(self) -> tuple[Sample, Sample]:
        """Samples of two consecutive frames."""
        clips = self._people[self._names[self._rng.integers(len(self._names))]]
        faces = clips[self._rng.integers(len(clips))]
        first = int(self._rng.choice(np.flatnonzero(np.diff(faces.index) == 1)))
        targets = [first, first + 1]
        near = neighbours(faces, self._centre(faces, first), self._near, excluded=targets)
        gap = 4 if self._rng.random() < 0.5 else 1  # half of the time without the nearly equal frames around it
        far = np.flatnonzero((faces.index < faces.index[first] + 1 - gap) | (faces.index > faces.index[first] + gap))
        candidates = self._rng.choice(far, CANDIDATES, replace=len(far) < CANDIDATES)
        first_sample, second_sample = self._maker.make(
            faces, targets, near, [int(row) for row in candidates], Augmentation(self._rng), self._lips
        )
        return first_sample, second_sample


def neighbours(faces: ClipFaces, centre: int, count: int, *, excluded: Collection[int]) -> list[int]:
    """The `count` rows nearest in time to `centre`, itself first, without `excluded`."""
    order = np.argsort(np.abs(faces.index - faces.index[centre]), kind="stable")
    return [int(row) for row in order if row not in excluded][:count]


def sorted_bank(faces: ClipFaces, count: int, target: int, gap: int) -> list[int]:
    """`count` rows spread evenly over the frames sorted by mouth opening (§3.2), without those within `gap` frames of
    row `target`."""
    far = np.abs(faces.index - faces.index[target]) > gap
    order = [int(row) for row in np.argsort(faces.opening, kind="stable") if far[row]]
    return [order[i] for i in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def collate(samples: list[Sample]) -> Sample:
    """Stack samples along a new first axis."""
    return Sample(*(torch.stack([getattr(s, name) for s in samples]) for name in Sample.__dataclass_fields__))

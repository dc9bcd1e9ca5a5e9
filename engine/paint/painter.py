"""Pictures of people: base frame + lower-face geometry -> full frame. Offline, live and idle use the same one."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.avatar.file import Bank
from engine.backends.backend import Backend, RenderBackend
from engine.models.morphable import MorphableModel
from engine.models.renderer import References, RendererConfig
from engine.paint.align import Aligner, Reference, Shape, Target
from engine.paint.composite import cut, paste

NEIGHBOURS = 2  # face references are the base frame and so many on each side: N_f = 5
LIP_REFERENCES = 6  # of the bank and the face references; docs/renderer.md has the figures
CACHED_FRAMES = 16  # sessions of one avatar paint within 8 frames of each other, and need the neighbours


@dataclass(frozen=True, kw_only=True)
class FittedVideo:
    """A person's base video with its fit: read(i) is frame i [H, W, 3] uint8; alpha [T, K_s], beta [T, K_e],
    pose [T, 6] float32; crop [T, 3] int32 (left, top, size) in frame pixels."""

    read: Callable[[int], np.ndarray]
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: Tensor

    @classmethod
    def of(cls, avatar: Avatar) -> FittedVideo:
        """That of an opened avatar."""
        read = avatar.open_base().read
        return cls(read=read, alpha=avatar.alpha, beta=avatar.beta, pose=avatar.pose, crop=avatar.crop)


@dataclass(frozen=True)
class _BaseFrame:
    image: np.ndarray
    reference: Reference


@dataclass(frozen=True)
class RenderInputs:
    """A picture as far as it is its person's own: what the renderer is given, and what its pixels are pasted into."""

    image: np.ndarray
    crop: np.ndarray
    target: Target
    lips: References
    faces: References

    @property
    def sizes(self) -> tuple[torch.Size, ...]:
        """Only sketches of equal sizes go through the renderer together."""
        images = (self.lips.pixels, self.lips.fine, self.faces.pixels, self.faces.fine)
        return tuple(image.shape for image in images if image is not None)


class Painter:
    """Paints frames of one person, as finely as the bank's crops are. Not thread-safe: it belongs to the inference
    thread. `windows`: the sizes that all of its windows have, for batches; without, they are as small as each picture
    allows."""

    def __init__(
        self,
        backend: RenderBackend,
        footage: FittedVideo,
        bank: Bank,
        model: MorphableModel,
        windows: RendererConfig | None = None,
    ):
        self.backend, self._footage, self._model = backend, footage, model
        self._aligner = Aligner(model, windows)
        self._vertices = model.vertices(footage.alpha, footage.beta)
        self._neutral = model.mean + model.shape(footage.alpha)
        shapes = map(
            self._aligner.shape,
            model.vertices(bank.alpha, bank.beta),
            model.mean + model.shape(bank.alpha),
            bank.pose,
        )
        self._crop_px = bank.crops.shape[1]
        self._lips = [Reference.of(crop, shape) for crop, shape in zip(bank.crops.numpy(), shapes, strict=True)]
        self._cache: OrderedDict[int, _BaseFrame] = OrderedDict()

    @classmethod
    def of(cls, backend: Backend, avatar: Avatar, model: MorphableModel) -> Painter:
        """The painter of an opened avatar."""
        return cls(backend, FittedVideo.of(avatar), avatar.bank, model, backend.windows)

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """Base frame `index` with the lower face replaced by lower [V_low, 3] (model units): [H, W, 3] uint8."""
        return paint([(self, index, lower)])[0]

    def sketch(self, index: int, lower: Tensor) -> RenderInputs:
        """Everything of that picture but what the renderer makes."""
        base = self._base(index)
        vertices = self._vertices[index].clone()
        vertices[self._model.lower] = lower
        target = self._aligner.target(self._shape(index, vertices), base.reference.shape)
        faces = self._faces(index)
        # The lips of the base frames themselves may be the right ones, and they are in the right light.
        lips = self._lips + faces
        nearest = self._aligner.nearest(target, [reference.shape for reference in lips], LIP_REFERENCES)
        return RenderInputs(
            image=base.image,
            crop=self._footage.crop[index].numpy(),
            target=target,
            lips=self._aligner.lips(target, [lips[i] for i in nearest]),
            faces=self._aligner.faces(target, faces),
        )

    def _shape(self, index: int, vertices: Tensor) -> Shape:
        return self._aligner.shape(vertices, self._neutral[index], self._footage.pose[index])

    def _base(self, index: int) -> _BaseFrame:
        """Base frame `index`, cut once and kept while its neighbours are painted."""
        if index not in self._cache:
            image = self._footage.read(index)
            crop = cut(image, self._footage.crop[index].numpy(), self._crop_px)
            reference = Reference.of(crop, self._shape(index, self._vertices[index]))
            self._cache[index] = _BaseFrame(image, reference)
            if len(self._cache) > CACHED_FRAMES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return self._cache[index]

    def _faces(self, index: int) -> list[Reference]:
        """The base frame first, then its neighbours in time."""
        last = len(self._vertices) - 1
        near = [index + d for d in range(-NEIGHBOURS, NEIGHBOURS + 1) if d and 0 <= index + d <= last]
        return [self._base(i).reference for i in (index, *near)]


def paint(asked: Sequence[tuple[Painter, int, Tensor]]) -> list[np.ndarray]:
    """The pictures that `Painter.paint` would make of (painter, index, lower), of painters of any persons that share a
    backend. Those of equal sizes go through it together."""
    sketches = [painter.sketch(index, lower) for painter, index, lower in asked]
    alike: defaultdict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
    for i, sketch in enumerate(sketches):
        alike[sketch.sizes].append(i)
    pictures: dict[int, np.ndarray] = {}
    for rows in alike.values():
        pixels = _render(asked[0][0].backend, [sketches[i] for i in rows])
        pictures |= {i: _pasted(sketches[i], face) for i, face in zip(rows, pixels, strict=True)}
    return [pictures[i] for i in range(len(asked))]


def _render(backend: RenderBackend, sketches: list[RenderInputs]) -> Tensor:
    """Their face windows, [B, 3, H, W], or twice as fine."""
    targets = [sketch.target for sketch in sketches]
    return backend.render(
        torch.from_numpy(np.stack([target.pncc for target in targets])),
        torch.from_numpy(np.stack([target.lip_mask for target in targets]))[:, None],
        torch.tensor([(target.lips.row, target.lips.column) for target in targets]),
        _together([sketch.lips for sketch in sketches]),
        _together([sketch.faces for sketch in sketches]),
    )


def _together(references: list[References]) -> References:
    fine = [r.fine for r in references if r.fine is not None]
    return References(
        torch.cat([r.pixels for r in references]),
        torch.cat([r.difference for r in references]),
        torch.cat(fine) if fine else None,
    )


def _pasted(sketch: RenderInputs, face: Tensor) -> np.ndarray:
    painted = ((face.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return paste(sketch.image, sketch.crop, sketch.target.window, painted, sketch.target.paste_mask)

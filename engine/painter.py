"""Pictures of one person: base frame + lower-face geometry -> full frame. Offline, live and idle use the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.align import Aligner, Reference, Shape
from engine.avatar import Avatar, Bank
from engine.backend import RenderBackend
from engine.compose import cut, paste
from engine.models.morphable import MorphableModel

NEIGHBOURS = 2  # face references are the base frame and so many on each side: N_f = 5
LIP_REFERENCES = 6  # of the bank and the face references; docs/renderer.md has the figures
CACHED_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A person's base video with its fit: read(i) is frame i [H, W, 3] uint8; alpha [T, K_s], beta [T, K_e],
    pose [T, 6] float32; crop [T, 3] int32 (left, top, size) in frame pixels."""

    read: Callable[[int], np.ndarray]
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: Tensor


@dataclass(frozen=True)
class _BaseFrame:
    image: np.ndarray
    reference: Reference


class Painter:
    """Paints frames of one person. Not thread-safe: it belongs to the inference thread."""

    def __init__(self, backend: RenderBackend, footage: Footage, bank: Bank, model: MorphableModel):
        self._backend, self._footage, self._model = backend, footage, model
        self._aligner = Aligner(model)
        self._vertices = model.vertices(footage.alpha, footage.beta)
        self._neutral = model.mean + model.shape(footage.alpha)
        shapes = map(
            self._aligner.shape,
            model.vertices(bank.alpha, bank.beta),
            model.mean + model.shape(bank.alpha),
            bank.pose,
        )
        self._lips = [Reference(crop, shape) for crop, shape in zip(bank.crops.numpy(), shapes, strict=True)]
        self._cache: OrderedDict[int, _BaseFrame] = OrderedDict()

    @classmethod
    def of(cls, backend: RenderBackend, avatar: Avatar, model: MorphableModel) -> Painter:
        """The painter of an opened avatar."""
        footage = Footage(
            read=avatar.open_base().read,
            alpha=avatar.alpha,
            beta=avatar.beta,
            pose=avatar.pose,
            crop=avatar.crop,
        )
        return cls(backend, footage, avatar.bank, model)

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """Base frame `index` with the lower face replaced by lower [V_low, 3] (model units): [H, W, 3] uint8."""
        base = self._base(index)
        vertices = self._vertices[index].clone()
        vertices[self._model.lower] = lower
        target = self._aligner.target(self._shape(index, vertices), base.reference.shape)
        faces = self._faces(index)
        # The lips of the base frames themselves may be the right ones, and they are in the right light.
        lips = self._lips + faces
        nearest = self._aligner.nearest(target, [reference.shape for reference in lips], LIP_REFERENCES)
        pixels = self._backend.render(
            torch.from_numpy(target.pncc)[None],
            torch.from_numpy(target.lip_mask)[None, None],
            torch.tensor([(target.lips.row, target.lips.column)]),
            self._aligner.lips(target, [lips[i] for i in nearest]),
            self._aligner.faces(target, faces),
        )
        painted = ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        return paste(base.image, self._footage.crop[index].numpy(), target.window, painted, target.paste_mask)

    def _shape(self, index: int, vertices: Tensor) -> Shape:
        return self._aligner.shape(vertices, self._neutral[index], self._footage.pose[index])

    def _base(self, index: int) -> _BaseFrame:
        """Base frame `index`, cut once and kept while its neighbours are painted."""
        if index not in self._cache:
            image = self._footage.read(index)
            crop = cut(image, self._footage.crop[index].numpy())
            reference = Reference(crop, self._shape(index, self._vertices[index]))
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

"""Pictures of people: base frame + lower-face geometry -> full frame, offline, live and for the idle video.

`PicturePainter` is the interface; a backend makes one (`Backend.painter`). `CpuPainter` paints on the CPU and is the
reference for `engine.paint.gpu.painter`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.avatar.file import Bank
from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import FINE, RendererConfig
from engine.paint.align import Aligner, PasteTarget, Reference
from engine.paint.composite import cut, paste, sharpened
from engine.paint.references import CPU_CACHED_FRAMES, FrameCache, LipReferences
from engine.paint.shape import Shape


class Renderer(Protocol):
    """The two parts of `DualAttentionRenderer`, on the CPU."""

    def attention(
        self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: Tensor, faces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def residual(self, texture: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor: ...


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
        """The base video of an opened avatar."""
        read = avatar.open_base().read
        return cls(read=read, alpha=avatar.alpha, beta=avatar.beta, pose=avatar.pose, crop=avatar.crop)

    @property
    def frames(self) -> int:
        return len(self.alpha)


class PicturePainter(Protocol):
    """Paints pictures of one person. As many threads as the backend has workers may use it."""

    @property
    def gains_by_batches(self) -> bool:
        """Whether several pictures together may take less time than one by one."""

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """Base frame `index` with the lower face replaced by lower [V_low, 3] (model units): [H, W, 3] uint8."""

    def paint_together(
        self, batch: Sequence[tuple[Self, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        """The pictures of a batch of (painter, run, fine). A run is pictures (index, lower) that follow each other in
        time: the first is rendered, the others may be laid from it, which takes a fraction of the time. fine: at the
        resolution of the avatar's references, else at 256 px. The painters have one backend and any persons; any of
        them paints the whole batch."""


@dataclass(frozen=True)
class _Face:
    """A painted face window before it is pasted: pixels [k h, k w, 3] uint8."""

    target: PasteTarget
    pixels: np.ndarray


@dataclass(frozen=True)
class _CachedFrame:
    """A base frame and its references, by the pixels of their crops per pixel of one of 256 px."""

    image: np.ndarray
    references: dict[int, Reference]

    @property
    def shape(self) -> Shape:
        return self.references[1].shape


class CpuPainter:
    """`PicturePainter` with a renderer on the CPU, for any number of threads.

    windows: fixed sizes of all windows, as the GPU has them; None: as small as each picture allows.
    """

    gains_by_batches = False

    def __init__(
        self,
        renderer: Renderer,
        video: FittedVideo,
        bank: Bank,
        model: MorphableModel,
        windows: RendererConfig | None = None,
    ):
        self._renderer, self._video, self._model = renderer, video, model
        self._aligner = Aligner(model, windows)
        self._vertices = model.vertices(video.alpha, video.beta)
        self._neutral = model.mean + model.shape(video.alpha)
        neutral = model.mean + model.shape(bank.alpha)
        shapes = list(map(Shape.posed, model.vertices(bank.alpha, bank.beta), neutral, bank.pose))
        self._zooms = (1, FINE) if bank.crops.shape[1] > CROP_PX else (1,)
        self._bank = [self._references(crop, shape) for crop, shape in zip(bank.crops.numpy(), shapes, strict=True)]
        self._lock = threading.Lock()  # of the two below
        self._lips = LipReferences(shapes)
        self._frames = FrameCache(video.frames, CPU_CACHED_FRAMES, video.read, self._cached)

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """`PicturePainter.paint`."""
        return self.paint_together([(self, [(index, lower)], True)])[0][0]

    def paint_together(
        self, batch: Sequence[tuple[CpuPainter, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        """`PicturePainter.paint_together`, one picture after the other."""
        return [painter._paint_run(run, painter._zooms[-1] if fine else 1) for painter, run, fine in batch]

    def _paint_run(self, run: Sequence[tuple[int, Tensor]], zoom: int) -> list[np.ndarray]:
        (index, lower), *_ = run
        frames = self._faces(index)
        face = self._rendered(index, lower, frames, zoom)
        pictures = [self._pasted(index, frames[0], face)]
        for index, lower in islice(run, 1, None):
            frame = self._faces(index)[0]
            face = self._laid(index, lower, frame, face)
            pictures.append(self._pasted(index, frame, face))
        return pictures

    def _rendered(self, index: int, lower: Tensor, frames: Sequence[_CachedFrame], zoom: int) -> _Face:
        """The face window of base frame `index` with lower [V_low, 3], rendered from the references."""
        target = self._aligner.target(self._target_shape(index, lower), frames[0].shape)
        candidates = [*self._bank, *(frame.references for frame in frames)]
        with self._lock:
            chosen = self._lips.choose(target.shape, [frame.shape for frame in frames])
        lips, faces = [candidates[i][zoom] for i in chosen], [frame.references[zoom] for frame in frames]
        pncc = torch.from_numpy(target.pncc)[None]
        geometry, of_lips, of_faces = self._renderer.attention(
            pncc,
            torch.from_numpy(target.lip_mask)[None, None],
            torch.tensor([(target.lips.row, target.lips.column)]),
            self._aligner.lip_difference(target, lips)[None],
            self._aligner.face_difference(target, faces)[None],
        )
        texture = self._aligner.texture(target, lips, faces, torch.cat([of_lips[0], of_faces[0]]).numpy())
        small = cv2.resize(texture, target.pncc.shape[:0:-1], interpolation=cv2.INTER_AREA)
        signed = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
        levels = 127.5 * self._renderer.residual(signed, geometry, pncc)[0].permute(1, 2, 0)
        residual = cv2.resize(levels.contiguous().numpy(), texture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return _Face(target, sharpened(texture + residual, target.lip_mask))

    def _laid(self, index: int, lower: Tensor, frame: _CachedFrame, before: _Face) -> _Face:
        """The face window of `before`, laid onto base frame `index` with lower [V_low, 3] by the mesh."""
        target = self._aligner.paste_target(self._target_shape(index, lower), frame.shape)
        return _Face(target, self._aligner.laid(target, before.pixels, before.target))

    def _pasted(self, index: int, frame: _CachedFrame, face: _Face) -> np.ndarray:
        target = face.target
        return paste(frame.image, self._video.crop[index].numpy(), target.window, face.pixels, target.paste_mask)

    def _faces(self, index: int) -> list[_CachedFrame]:
        with self._lock:
            return self._frames.faces(index)

    def _target_shape(self, index: int, lower: Tensor) -> Shape:
        vertices = self._vertices[index].clone()
        vertices[self._model.lower] = lower
        return self._shape(index, vertices)

    def _shape(self, index: int, vertices: Tensor) -> Shape:
        return Shape.posed(vertices, self._neutral[index], self._video.pose[index])

    def _cached(self, index: int, image: np.ndarray, _: int) -> _CachedFrame:
        crop = cut(image, self._video.crop[index].numpy(), self._zooms[-1] * CROP_PX)
        return _CachedFrame(image, self._references(crop, self._shape(index, self._vertices[index])))

    def _references(self, crop: np.ndarray, shape: Shape) -> dict[int, Reference]:
        """The reference at every resolution, from a crop of the largest."""
        sizes = {zoom: (zoom * CROP_PX, zoom * CROP_PX) for zoom in self._zooms}
        return {
            zoom: Reference(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), shape) for zoom, size in sizes.items()
        }

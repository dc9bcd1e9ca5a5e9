"""Pictures of people: base frame + lower-face geometry -> full frame, offline, live and for the idle video.

`PicturePainter` is the interface; a backend makes one (`Backend.painter`). `CpuPainter` paints on the CPU and is the
reference for `engine.paint.gpu.painter`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from engine.avatar.avatar import Avatar
from engine.avatar.file import Bank
from engine.models.morphable import MorphableModel
from engine.models.renderer import References, RendererConfig
from engine.paint.align import Aligner, Reference, Target
from engine.paint.composite import cut, paste
from engine.paint.references import CPU_CACHED_FRAMES, FrameCache, LipReferences
from engine.paint.shape import Shape

Renderer = Callable[[Tensor, Tensor, Tensor, References, References], Tensor]
"""`DualAttentionRenderer.forward`: pncc, lip_mask, lip_cell, lips, faces, on the CPU, to face windows [B, 3, H, W]."""


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
    """Paints pictures of one person, on as many threads at once as its backend has workers."""

    @property
    def gains_by_batches(self) -> bool:
        """Whether several pictures together may take less time than one by one."""

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """Base frame `index` with the lower face replaced by lower [V_low, 3] (model units): [H, W, 3] uint8."""

    def paint_together(
        self, batch: Sequence[tuple[Self, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        """The pictures of a batch of runs: (painter, ((index, lower), ...) of consecutive frames, fine). The network
        paints the first picture of a run, as painter.paint(index, lower) does; the others may be laid from it. Unless
        `fine`, at 256 px. The painters have one backend and any persons; any of them paints the whole batch."""


@dataclass(frozen=True)
class RenderInputs:
    """A picture before it is rendered: the base frame and its crop box, the target and the aligned references."""

    image: np.ndarray
    box: np.ndarray
    target: Target
    lips: References
    faces: References

    @property
    def sizes(self) -> tuple[torch.Size, ...]:
        """The renderer can take pictures of equal sizes in one batch."""
        images = (self.lips.pixels, self.lips.fine, self.faces.pixels, self.faces.fine)
        return tuple(image.shape for image in images if image is not None)


@dataclass(frozen=True)
class _CachedFrame:
    image: np.ndarray
    reference: Reference


class CpuPainter:
    """`PicturePainter` with a renderer on the CPU. Pictures have the resolution of the bank's crops.

    windows: fixed sizes of all windows, so that pictures can be rendered in batches; None: as small as each picture
    allows.
    """

    def __init__(
        self,
        renderer: Renderer,
        video: FittedVideo,
        bank: Bank,
        model: MorphableModel,
        windows: RendererConfig | None = None,
    ):
        self._renderer, self._video, self._model = renderer, video, model
        self._lock = threading.Lock()
        self.gains_by_batches = windows is not None
        self._aligner = Aligner(model, windows)
        self._vertices = model.vertices(video.alpha, video.beta)
        self._neutral = model.mean + model.shape(video.alpha)
        neutral = model.mean + model.shape(bank.alpha)
        shapes = list(map(Shape.posed, model.vertices(bank.alpha, bank.beta), neutral, bank.pose))
        self._crop_px = bank.crops.shape[1]
        self._bank = [Reference.of(crop, shape) for crop, shape in zip(bank.crops.numpy(), shapes, strict=True)]
        self._lips = LipReferences(shapes)
        self._frames = FrameCache(video.frames, CPU_CACHED_FRAMES, video.read, self._cached)

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """`PicturePainter.paint`."""
        return self.paint_together([(self, [(index, lower)], True)])[0][0]

    def paint_together(
        self, batch: Sequence[tuple[CpuPainter, Sequence[tuple[int, Tensor]], bool]]
    ) -> list[list[np.ndarray]]:
        """`PicturePainter.paint_together`; pictures of equal sizes are rendered in one batch."""
        pictures = iter(self._paint_each([(painter, *frame) for painter, frames, _ in batch for frame in frames]))
        return [[next(pictures) for _ in frames] for _, frames, _ in batch]

    def _paint_each(self, batch: Sequence[tuple[CpuPainter, int, Tensor]]) -> list[np.ndarray]:
        inputs = [painter.render_inputs(index, lower) for painter, index, lower in batch]
        alike: defaultdict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
        for i, picture in enumerate(inputs):
            alike[picture.sizes].append(i)
        pictures: dict[int, np.ndarray] = {}
        for rows in alike.values():
            pixels = self._render([inputs[i] for i in rows])
            pictures |= {i: _pasted(inputs[i], face) for i, face in zip(rows, pixels, strict=True)}
        return [pictures[i] for i in range(len(batch))]

    def render_inputs(self, index: int, lower: Tensor) -> RenderInputs:
        """The inputs of the renderer for base frame `index` with lower [V_low, 3]."""
        with self._lock:
            frames = self._frames.faces(index)
        faces = [frame.reference for frame in frames]
        vertices = self._vertices[index].clone()
        vertices[self._model.lower] = lower
        target = self._aligner.target(self._shape(index, vertices), faces[0].shape)
        candidates = self._bank + faces
        with self._lock:
            chosen = self._lips.choose(target.shape, [face.shape for face in faces])
        lips = [candidates[i] for i in chosen]
        return RenderInputs(
            image=frames[0].image,
            box=self._video.crop[index].numpy(),
            target=target,
            lips=self._aligner.lips(target, lips),
            faces=self._aligner.faces(target, faces),
        )

    def _shape(self, index: int, vertices: Tensor) -> Shape:
        return Shape.posed(vertices, self._neutral[index], self._video.pose[index])

    def _cached(self, index: int, image: np.ndarray, _: int) -> _CachedFrame:
        crop = cut(image, self._video.crop[index].numpy(), self._crop_px)
        return _CachedFrame(image, Reference.of(crop, self._shape(index, self._vertices[index])))

    def _render(self, inputs: list[RenderInputs]) -> Tensor:
        """Face windows [B, 3, h, w] in [-1, 1] of pictures of equal sizes, or [B, 3, 2 h, 2 w]."""
        targets = [picture.target for picture in inputs]
        return self._renderer(
            torch.from_numpy(np.stack([target.pncc for target in targets])),
            torch.from_numpy(np.stack([target.lip_mask for target in targets]))[:, None],
            torch.tensor([(target.lips.row, target.lips.column) for target in targets]),
            _stacked([picture.lips for picture in inputs]),
            _stacked([picture.faces for picture in inputs]),
        )


def _stacked(references: list[References]) -> References:
    fine = [r.fine for r in references if r.fine is not None]
    return References(
        torch.cat([r.pixels for r in references]),
        torch.cat([r.difference for r in references]),
        torch.cat(fine) if fine else None,
    )


def _pasted(inputs: RenderInputs, face: Tensor) -> np.ndarray:
    painted = ((face.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return paste(inputs.image, inputs.box, inputs.target.window, painted, inputs.target.paste_mask)

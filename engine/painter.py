"""Pictures of one person: base frame + lower-face geometry -> full frame. Offline, live and idle use the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.avatar import Avatar
from engine.backend import Backend, FaceLatents
from engine.compose import (
    cut,
    face_cells,
    face_window,
    lip_mask,
    lip_window,
    lip_window_in,
    paste,
    paste_mask,
    pixels_of,
)
from engine.models.morphable import CROP_PX, MorphableModel, load_face_model, project
from engine.models.renderer import Reference
from engine.raster import rasterise

NEIGHBOURS = 2  # face references are the base frame and so many on each side: N_f = 5
CACHED_FRAMES = 12


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A person's base video with its fit: read(i) is frame i [H, W, 3] uint8; alpha [T, K_s], beta [T, K_e],
    pose [T, 6] float32; crop [T, 3] int32."""

    read: Callable[[int], np.ndarray]
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: Tensor


@dataclass(frozen=True)
class _BaseFrame:
    image: np.ndarray
    mesh: np.ndarray  # [V, 3] in crop pixels
    latents: FaceLatents


def to_signed(crop: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 to [1, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1


class Painter:
    """Paints frames of one person. Not thread-safe: it belongs to the inference thread."""

    def __init__(self, backend: Backend, footage: Footage, lips: Reference, model: MorphableModel | None = None):
        self._backend, self._footage, self._lips = backend, footage, lips
        self._model = model or load_face_model()
        self._triangles, self._codes = self._model.triangles.numpy(), self._model.codes.numpy()
        self._cache: OrderedDict[int, _BaseFrame] = OrderedDict()
        self._vertices = self._model.vertices(footage.alpha, footage.beta)

    @classmethod
    def of(cls, backend: Backend, avatar: Avatar, model: MorphableModel) -> Painter:
        """The painter of an opened avatar."""
        footage = Footage(
            read=avatar.open_base().read,
            alpha=avatar.alpha,
            beta=avatar.beta,
            pose=avatar.pose,
            crop=avatar.crop,
        )
        bank = avatar.bank.renderer
        return cls(backend, footage, Reference(bank["keys"].float()[None], bank["values"].float()[None]), model)

    def paint(self, index: int, lower: Tensor) -> np.ndarray:
        """Base frame `index` with the lower face replaced by lower [V_low, 3] (model units): [H, W, 3] uint8."""
        base = self._base(index)
        vertices = self._vertices[index].clone()
        vertices[self._model.lower] = lower
        mesh = project(vertices, self._footage.pose[index]).numpy()
        config = self._backend.renderer_config
        cell = face_window(mesh, config)
        lips = lip_mask(mesh, cell, config)
        mask = paste_mask(mesh, base.mesh, cell, config)
        pixels = self._backend.render(
            torch.from_numpy(pixels_of(self._pncc(mesh), cell, config.face_rows, config.face_columns)[None].copy()),
            torch.from_numpy(lips)[None, None],
            torch.tensor([lip_window_in(mesh, cell, config)]),
            torch.from_numpy(face_cells(mask, lips))[None],
            self._lips,
            self._faces(index, cell),
        )
        painted = ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        return paste(base.image, self._footage.crop[index].numpy(), cell, painted, mask)

    def _pncc(self, mesh: np.ndarray) -> np.ndarray:
        return rasterise(mesh, self._triangles, self._codes, CROP_PX, CROP_PX)

    def _base(self, index: int) -> _BaseFrame:
        """Base frame `index`, encoded once and kept while its neighbours are painted."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        image = self._footage.read(index)
        mesh = project(self._vertices[index], self._footage.pose[index]).numpy()
        crop = cut(image, self._footage.crop[index].numpy())
        latents = self._backend.encode(torch.from_numpy(self._pncc(mesh))[None], to_signed(crop))
        self._cache[index] = _BaseFrame(image, mesh, latents)
        if len(self._cache) > CACHED_FRAMES:
            self._cache.popitem(last=False)
        return self._cache[index]

    def _faces(self, index: int, cell: tuple[int, int]) -> Reference:
        """Keys and values of the face window at `cell` in the base frame (first) and its neighbours."""
        config = self._backend.renderer_config
        last = len(self._vertices) - 1
        near = [index + d for d in range(-NEIGHBOURS, NEIGHBOURS + 1) if d and 0 <= index + d <= last]
        window = np.s_[..., cell[0] : cell[0] + config.face_rows, cell[1] : cell[1] + config.face_columns]
        latents = [self._base(i).latents for i in (index, *near)]
        geometry, texture = (torch.cat([x[part][window] for x in latents])[None] for part in (0, 1))
        return self._backend.faces(geometry, texture)


def encode_bank(backend: Backend, model: MorphableModel, crops: np.ndarray, meshes: np.ndarray) -> dict[str, Tensor]:
    """What an avatar stores of its lip references, from crops [N, 256, 256, 3] uint8 and meshes [N, V, 3] in crop
    pixels: keys [n, C] and values [n, C + 48], float16, n = N times the cells of a lip window."""
    config = backend.renderer_config
    triangles, codes = model.triangles.numpy(), model.codes.numpy()
    windows: list[FaceLatents] = []
    for crop, mesh in zip(crops, meshes, strict=True):
        pncc = torch.from_numpy(rasterise(mesh, triangles, codes, CROP_PX, CROP_PX))[None]
        row, column = lip_window(mesh, config)
        window = np.s_[..., row : row + config.lip_rows, column : column + config.lip_columns]
        geometry, texture = backend.encode(pncc, to_signed(crop))
        windows.append((geometry[window], texture[window]))
    geometry, texture = (torch.cat([w[part] for w in windows])[None] for part in (0, 1))
    reference = backend.lips(geometry, texture)
    return {"keys": reference.keys[0].half(), "values": reference.values[0].half()}

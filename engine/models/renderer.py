"""The dual-attention renderer (§3.2): textures of the enrolled person, fetched for a target geometry.

In the paper, attention finds for every cell of the target the cells of the references that show the same place of the
face. Here the mesh gives that place, to a fraction of a pixel: each reference is warped onto the target geometry first
(`engine.paint.align`), and attention weighs the references in each cell by the difference of their geometry to the
target's. docs/renderer.md has the measurement behind this.

The network works in two windows on the grid of 4 px cells: the face window around the lower face of the target and the
lip window inside it. Untrained, it copies: values carry the raw pixels of their cell, and a reference with the target's
geometry gets all the weight. Training learns the rest. Weights are per cell, so they mix textures of any resolution:
references at twice the resolution give a picture at twice the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CELL_PX = 4
RAW = 3 * CELL_PX * CELL_PX
FINE = 2  # pixels per side of fine textures and pictures, relative to normal ones
FINE_CELL_PX = FINE * CELL_PX
FAINT = 1e-4  # added to weights, so that they can be divided by their sum
DIFFERENCE = 6  # canonical vertex offset (3) and rotation offset (3) of a reference against the target


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """Sizes; rows and columns, in cells of 4 px, are those of all windows in training."""

    channels: int = 48
    hidden: int = 24
    face_rows: int = 28
    face_columns: int = 34
    lip_rows: int = 16
    lip_columns: int = 24


@dataclass(frozen=True)
class References:
    """N images warped onto the target: pixels [B, N, 3, H, W] in [-1, 1]; difference [B, N, 6, H / 4, W / 4] of each
    reference's geometry to the target's at that place (model units, radians); fine [B, M, 3, 2 H, 2 W] uint8, the first
    M of them at twice the resolution, or None."""

    pixels: Tensor
    difference: Tensor
    fine: Tensor | None = None


class Encoder(nn.Module):
    """Images [B, 3, H, W] to latents [B, C, H / 4, W / 4]: two strided convolutions."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.first = nn.Conv2d(3, config.hidden, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.hidden, config.channels, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        latents: Tensor = self.second(functional.leaky_relu(self.first(images), 0.1))
        return latents


class ReferenceAttention(nn.Module):
    """Eq. 3 over N aligned references: queries from the target's geometry, keys from the references'.

    The logits start as -s |difference|^2, so that the nearest geometry wins; queries and keys are learned on top.
    """

    def __init__(self, config: RendererConfig):
        super().__init__()
        width = config.hidden
        self.query = nn.Conv2d(config.channels, width, 1)
        self.key = nn.Sequential(
            nn.Conv2d(DIFFERENCE, width, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 1)
        )
        self.log_sharpness = nn.Parameter(torch.tensor([8.2, 8.2, 8.2, 5.2, 5.2, 5.2]))
        self.scale = width**-0.5
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)  # type: ignore[arg-type]

    def forward(self, geometry: Tensor, difference: Tensor) -> Tensor:
        """geometry [B, C, h, w], difference [B, N, 6, h, w] to weights [B, N, 1, h, w] that sum to 1 over N."""
        keys = self.key(difference.flatten(0, 1) * 10).unflatten(0, difference.shape[:2])
        learned = (self.query(geometry)[:, None] * keys).sum(2, keepdim=True) * self.scale
        distance = (difference.square() * self.log_sharpness.exp()[:, None, None]).sum(2, keepdim=True)
        return torch.softmax(learned - distance, dim=1)


class TextureDecoder(nn.Module):
    """Sampled textures and target geometry to pixels: the copied cells plus a learned residual, two upsamplings."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        hidden, channels = config.hidden, config.channels
        self.coarse = nn.Conv2d(2 * channels + RAW, 2 * channels, 3, padding=1)
        self.middle = nn.Conv2d(2 * channels, 4 * hidden, 3, padding=1)
        self.fine = nn.Conv2d(hidden, 4 * 12, 3, padding=1)
        self.pixels = nn.Conv2d(12 + 6, 3, 3, padding=1)
        nn.init.zeros_(self.pixels.weight)
        nn.init.zeros_(self.pixels.bias)  # type: ignore[arg-type]

    def forward(self, sampled: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        """sampled [B, C + 48, h, w], geometry [B, C, h, w], pncc [B, 3, 4 h, 4 w] to pixels [B, 3, 4 h, 4 w]."""
        copied = functional.pixel_shuffle(sampled[:, -RAW:], CELL_PX)
        x = functional.leaky_relu(self.coarse(torch.cat([sampled, geometry], 1)), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.middle(x), 2), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.fine(x), 2), 0.1)
        pixels: Tensor = copied + self.pixels(torch.cat([x, copied, pncc], 1))
        return pixels


class DualAttentionRenderer(nn.Module):
    """Lip-Attention and Face-Attention, fused by the lip mask (eq. 4), then decoded."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.config = config
        self.geometry = Encoder(config)
        self.texture = Encoder(config)
        self.lip = ReferenceAttention(config)
        self.face = ReferenceAttention(config)
        self.decoder = TextureDecoder(config)

    def _sample(self, weights: Tensor, references: References) -> Tensor:
        """Texture latents and raw cells, [B, C + 48, h, w], mixed over the references."""
        latents = self.texture(references.pixels.flatten(0, 1)).unflatten(0, weights.shape[:2])
        spread = weights.repeat_interleave(CELL_PX, -2).repeat_interleave(CELL_PX, -1)
        copied = (references.pixels * spread).sum(1)  # the same as mixing raw cells, without moving all of them
        return torch.cat([(latents * weights).sum(1), functional.pixel_unshuffle(copied, CELL_PX)], 1)

    def forward(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        """Render the face window [B, 3, H, W] in [-1, 1]; [B, 3, 2 H, 2 W] where lips and faces have fine textures.

        pncc [B, 3, H, W] of the target in [0, 1]; lip_mask [B, 1, rows, columns] in [0, 1], zero outside the lip
        window; lip_cell [B, 2] int64: row and column of the lip window inside the face window.
        """
        geometry = self.geometry(pncc)
        place = _lip_place(lip_cell, *lips.difference.shape[-2:])
        of_faces = self.face(geometry, faces.difference)
        of_lips = self.lip(geometry[place].permute(0, 3, 1, 2), lips.difference)
        fused = _fuse(self._sample(of_faces, faces), self._sample(of_lips, lips), lip_mask, place)
        pixels: Tensor = self.decoder(fused, geometry, pncc)
        if lips.fine is None or faces.fine is None:
            return pixels
        place = _lip_place(lip_cell * FINE_CELL_PX, *lips.fine.shape[-2:])
        fetched = _fuse(_mixed(of_faces, faces.fine), _mixed(of_lips, lips.fine), _enlarged(lip_mask), place)
        # The normal picture, and the detail that the fetched textures add to it.
        coarse = functional.avg_pool2d(fetched, FINE)
        return fetched + functional.interpolate(pixels - coarse, scale_factor=FINE, mode="bilinear")


def _fuse(face: Tensor, lip: Tensor, mask: Tensor, place: tuple[Tensor, slice, Tensor, Tensor]) -> Tensor:
    """Eq. 4: face [B, C, h, w] with lip [B, C, rows, columns] at `place`, by mask [B, 1, h, w]."""
    fused, share = face.clone(), mask[place]
    fused[place] = lip.permute(0, 2, 3, 1) * share + face[place] * (1 - share)
    return fused


def _enlarged(cells: Tensor) -> Tensor:
    """[B, K, h, w] of cells to [B, K, 8 h, 8 w] of fine pixels; smooth, as steps between cells would be visible."""
    return functional.interpolate(cells, scale_factor=FINE_CELL_PX, mode="bilinear")


def _mixed(weights: Tensor, textures: Tensor) -> Tensor:
    """Fine textures [B, M, 3, 8 h, 8 w] uint8, mixed by the weights [B, N, 1, h, w] of the first M references,
    normalised to sum 1: [B, 3, 8 h, 8 w] in [-1, 1]."""
    among = weights[:, : textures.shape[1], 0] + FAINT
    share = _enlarged(among / among.sum(1, keepdim=True))
    # In place: allocating one or two megabytes more goes through the system each time, which costs 3 ms.
    return textures.to(share.dtype).mul_(share[:, :, None]).sum(1).div_(127.5).sub_(1)


def _lip_place(lip_cell: Tensor, rows: int, columns: int) -> tuple[Tensor, slice, Tensor, Tensor]:
    """Index of the lip windows in [B, C, h, w]; the selection is [B, rows, columns, C]."""
    row = lip_cell[:, 0, None] + torch.arange(rows, device=lip_cell.device)
    column = lip_cell[:, 1, None] + torch.arange(columns, device=lip_cell.device)
    batch = torch.arange(lip_cell.shape[0], device=lip_cell.device)[:, None, None]  # len() would fix it on export
    return batch, slice(None), row[:, :, None], column[:, None, :]

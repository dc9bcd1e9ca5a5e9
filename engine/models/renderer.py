"""The dual-attention renderer (§3.2): textures of the enrolled person, fetched for a target geometry.

Everything happens inside two windows on the 64 x 64 grid of 4 px cells over the 256 px crop: the face window around
the lower face of the target, and the lip window around the lips of whichever frame. Only there is the result used.

The network starts as a copy: queries and keys are tied, positions are sinusoidal and values carry the raw pixels of
their cell, so that before any training each cell fetches itself; training adds what a copy cannot do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CELL_PX = 4
GRID = 64
MARGIN_PX = CELL_PX  # context that makes the encoding of a window equal to that window of the whole crop's encoding


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """Sizes; rows and columns are in cells of 4 px."""

    channels: int = 64
    hidden: int = 32
    face_rows: int = 32
    face_columns: int = 40
    lip_rows: int = 16
    lip_columns: int = 24


@dataclass(frozen=True)
class Reference:
    """Encoded cells: keys [B, n, C] and values [B, n, C + 48] (latent texture, raw pixels of the cell)."""

    keys: Tensor
    values: Tensor


def sinusoids(channels: int, rows: int, columns: int) -> Tensor:
    """2-D positions [channels, rows, columns]: one half of the channels for each axis, wavelengths 4 to 80 cells."""
    pairs = channels // 4
    rate = 2 * math.pi / torch.logspace(math.log10(4), math.log10(80), pairs)
    y, x = (torch.arange(n)[None] * rate[:, None] for n in (rows, columns))
    vertical = torch.cat([y.sin(), y.cos()])[:, :, None].expand(-1, -1, columns)
    horizontal = torch.cat([x.sin(), x.cos()])[:, None, :].expand(-1, rows, -1)
    return torch.cat([vertical, horizontal])


class GeometryEncoder(nn.Module):
    """PNCC [B, 3, H, W] in [0, 1] to latents [B, C, H / 4, W / 4]: two strided convolutions, and the codes of each
    cell as sines, which give correspondence a sharp start."""

    octaves = 4

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.first = nn.Conv2d(3, config.hidden, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.hidden, config.channels, 3, stride=2, padding=1)
        self.codes = nn.Conv2d(6 * self.octaves, config.channels, 1, bias=False)
        nn.init.orthogonal_(self.codes.weight, gain=1.5)

    def forward(self, pncc: Tensor) -> Tensor:
        cells = functional.avg_pool2d(pncc, CELL_PX)
        turns = torch.cat([cells * (2 * math.pi * 2**octave) for octave in range(1, self.octaves + 1)], 1)
        codes: Tensor = self.codes(torch.cat([turns.sin(), turns.cos()], 1))
        return codes + self.second(functional.relu(self.first(pncc)))


class TextureEncoder(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] to [B, C + 48, H / 4, W / 4]: two strided convolutions beside the raw cells."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.first = nn.Conv2d(3, config.hidden, 3, stride=2, padding=1)
        self.second = nn.Conv2d(config.hidden, config.channels, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        latent = self.second(functional.relu(self.first(pixels)))
        return torch.cat([latent, functional.pixel_unshuffle(pixels, CELL_PX)], 1)


class CrossAttention(nn.Module):
    """Eq. 3 with one projection for queries and keys, and learned positions on both, over one window's cells."""

    def __init__(self, channels: int, rows: int, columns: int):
        super().__init__()
        self.position = nn.Parameter(2.0 * sinusoids(channels, rows, columns))
        self.project = nn.Linear(channels, channels, bias=False)
        nn.init.eye_(self.project.weight)
        self.scale = channels**-0.5

    def tokens(self, geometry: Tensor) -> Tensor:
        """Queries or keys [B, rows * columns, C] of geometry latents [B, C, rows, columns]."""
        projected: Tensor = self.project((geometry + self.position).flatten(2).transpose(1, 2))
        return projected

    def forward(self, queries: Tensor, reference: Reference) -> Tensor:
        """queries [B, q, C] to sampled values [B, q, C + 48]."""
        weights = torch.softmax((queries * self.scale) @ reference.keys.transpose(1, 2), dim=-1)
        return weights @ reference.values


class TextureDecoder(nn.Module):
    """Sampled latents and target geometry to pixels: the copied cells plus a learned residual, two upsamplings."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        hidden = config.hidden
        self.coarse = nn.Conv2d(2 * config.channels + 48, config.channels, 3, padding=1)
        self.middle = nn.Conv2d(config.channels, 4 * hidden, 3, padding=1)
        self.fine = nn.Conv2d(hidden, 4 * hidden // 2, 3, padding=1)
        self.pixels = nn.Conv2d(hidden // 2 + 6, 3, 3, padding=1)
        nn.init.zeros_(self.pixels.weight)
        nn.init.zeros_(self.pixels.bias)  # type: ignore[arg-type]

    def forward(self, sampled: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        """sampled [B, C + 48, h, w], geometry [B, C, h, w], pncc [B, 3, 4 h, 4 w] to pixels [B, 3, 4 h, 4 w]."""
        copied = functional.pixel_shuffle(sampled[:, -48:], CELL_PX)
        x = functional.leaky_relu(self.coarse(torch.cat([sampled, geometry], 1)), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.middle(x), 2), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.fine(x), 2), 0.1)
        return copied + self.pixels(torch.cat([x, copied, pncc], 1))


def inner_cells(latent: Tensor) -> Tensor:
    """Drop the cells of the margin: [..., h + 2, w + 2] to [..., h, w]."""
    return latent[..., 1:-1, 1:-1]


class DualAttentionRenderer(nn.Module):
    """Lip-Attention and Face-Attention, fused by the lip mask (eq. 4), then decoded.

    Windows of pixels come with a margin of 4 px on each side. Rows and columns of the windows are in the config.
    """

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.config = config
        self.geometry = GeometryEncoder(config)
        self.texture = TextureEncoder(config)
        self.lip = CrossAttention(config.channels, config.lip_rows, config.lip_columns)
        self.face = CrossAttention(config.channels, config.face_rows, config.face_columns)
        self.decoder = TextureDecoder(config)

    def latents(self, pncc: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [B, 3, H, W] (PNCC in [0, 1], pixels in [-1, 1]) to geometry [B, C, H/4, W/4] and texture
        [B, C + 48, H/4, W/4]."""
        return self.geometry(pncc), self.texture(pixels)

    @staticmethod
    def reference(attention: CrossAttention, geometry: Tensor, texture: Tensor) -> Reference:
        """Keys and values of N windows side by side, from latents [B, N, channels, rows, columns] of the windows."""
        keys = attention.tokens(geometry.flatten(0, 1)).unflatten(0, geometry.shape[:2])
        values = texture.flatten(3).transpose(2, 3)
        return Reference(keys.flatten(1, 2), values.flatten(1, 2))

    def encode_windows(self, attention: CrossAttention, pncc: Tensor, pixels: Tensor) -> Reference:
        """Keys and values of N windows given as images with their margin, [B, N, 3, H + 8, W + 8]."""
        encoded = self.latents(pncc.flatten(0, 1), pixels.flatten(0, 1))
        geometry, texture = (inner_cells(x).unflatten(0, pncc.shape[:2]) for x in encoded)
        return self.reference(attention, geometry, texture)

    def forward(
        self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, cells: Tensor, lips: Reference, faces: Reference
    ) -> Tensor:
        """Render the face window.

        pncc [B, 3, H + 8, W + 8] of the target; lip_mask [B, 1, rows, columns] in [0, 1], zero outside the lip
        window; lip_cell [B, 2] int64: row and column of the lip window inside the face window; cells [B, q] int64:
        the cells (row-major) whose face texture is asked for. All others keep the pixels of the first face
        reference, the base frame. Returns [B, 3, H, W].
        """
        config = self.config
        geometry = inner_cells(self.geometry(pncc))
        count = config.face_rows * config.face_columns
        queries = self.face.tokens(geometry).gather(1, cells[..., None].expand(-1, -1, config.channels))
        found = self.face(queries, faces)
        base = faces.values[:, :count]
        sampled = base.scatter(1, cells[..., None].expand(-1, -1, base.shape[-1]), found)
        sampled = sampled.transpose(1, 2).unflatten(2, (config.face_rows, config.face_columns))
        place = self._lip_place(lip_cell)
        window = geometry[place].permute(0, 3, 1, 2)
        lip = self.lip(self.lip.tokens(window), lips).unflatten(1, (config.lip_rows, config.lip_columns))
        mask = lip_mask[place]
        fused = sampled.clone()
        fused[place] = lip * mask + sampled[place] * (1 - mask)
        inside = pncc[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
        pixels: Tensor = self.decoder(fused, geometry, inside)
        return pixels

    def _lip_place(self, lip_cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index of the lip windows in [B, C, rows, columns]; what it selects is [B, lip rows, lip columns, C]."""
        rows = lip_cell[:, 0, None] + torch.arange(self.config.lip_rows, device=lip_cell.device)
        columns = lip_cell[:, 1, None] + torch.arange(self.config.lip_columns, device=lip_cell.device)
        batch = torch.arange(len(lip_cell), device=lip_cell.device)[:, None, None]
        return batch, slice(None), rows[:, :, None], columns[:, None, :]  # type: ignore[return-value]

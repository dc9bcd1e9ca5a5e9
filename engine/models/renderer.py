"""The dual-attention renderer (§3.2): textures of the enrolled person, fetched for a target geometry.

In the paper, attention finds for every cell of the target the cells of the references that show the same place of the
face. Here the mesh gives that place, to a fraction of a pixel: each reference is warped onto the target geometry
(`engine.paint.align`), and attention weighs the references in each cell by the difference of their geometry to the
target's. docs/renderer.md has the measurement behind this.

The network works in two windows on the grid of 4 px cells: the face window around the lower face of the target and the
lip window inside it. It has two parts. `attention` needs geometry alone and says how much of each reference every cell
takes; `residual` needs the mixed texture and says what must be added to it. Between the two, textures are fetched and
mixed: `forward` does it with tensors, `engine.paint.gather` in one pass over the crops. Untrained, the network copies
the reference with the target's geometry. Training learns the rest. Weights mix textures of any resolution: references
at twice the resolution give a picture at twice the resolution.
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
FAINT = 0.25  # of the largest weight: smaller ones are left out, as mixing many references blurs and takes time
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
    """N images warped onto the target: pixels [B, N, 3, k H, k W] in [-1, 1], k = 1 or 2 (fine textures); difference
    [B, N, 6, H / 4, W / 4] of each reference's geometry to the target's at that place (model units, radians)."""

    pixels: Tensor
    difference: Tensor


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

    The logits start as -s |difference|^2, so that the nearest geometry wins; queries and keys are learned on top, and a
    preference for the first reference, which decides between equal ones: of the faces it is the base frame.
    """

    def __init__(self, config: RendererConfig):
        super().__init__()
        width = config.hidden
        self.query = nn.Conv2d(config.channels, width, 1)
        self.key = nn.Sequential(
            nn.Conv2d(DIFFERENCE, width, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 1)
        )
        self.log_sharpness = nn.Parameter(torch.tensor([8.2, 8.2, 8.2, 5.2, 5.2, 5.2]))
        self.preference = nn.Parameter(torch.tensor(1.5))
        self.scale = width**-0.5
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)  # type: ignore[arg-type]

    def forward(self, geometry: Tensor, difference: Tensor) -> Tensor:
        """geometry [B, C, h, w], difference [B, N, 6, h, w] to weights [B, N, h, w] that sum to 1 over N."""
        keys = self.key(difference.flatten(0, 1) * 10).unflatten(0, difference.shape[:2])
        learned = (self.query(geometry)[:, None] * keys).sum(2, keepdim=True) * self.scale
        distance = (difference.square() * self.log_sharpness.exp()[:, None, None]).sum(2, keepdim=True)
        logits = (learned - distance)[:, :, 0]
        first = torch.cat([logits[:, :1] + self.preference, logits[:, 1:]], 1)
        weights = torch.softmax(first, dim=1)
        clear = functional.relu(weights - FAINT * weights.amax(1, keepdim=True))
        return clear / clear.sum(1, keepdim=True)


class TextureDecoder(nn.Module):
    """Mixed textures and target geometry to the residual of the pixels: two upsamplings."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        hidden, channels = config.hidden, config.channels
        self.coarse = nn.Conv2d(channels + RAW, 2 * channels, 3, padding=1)
        self.middle = nn.Conv2d(2 * channels, 4 * hidden, 3, padding=1)
        self.fine = nn.Conv2d(hidden, 4 * 12, 3, padding=1)
        self.pixels = nn.Conv2d(12 + 6, 3, 3, padding=1)
        nn.init.zeros_(self.pixels.weight)
        nn.init.zeros_(self.pixels.bias)  # type: ignore[arg-type]

    def forward(self, texture: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        """texture [B, 3, 4 h, 4 w], geometry [B, C, h, w], pncc [B, 3, 4 h, 4 w] to [B, 3, 4 h, 4 w]."""
        x = torch.cat([functional.pixel_unshuffle(texture, CELL_PX), geometry], 1)
        x = functional.leaky_relu(self.coarse(x), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.middle(x), 2), 0.1)
        x = functional.leaky_relu(functional.pixel_shuffle(self.fine(x), 2), 0.1)
        residual: Tensor = self.pixels(torch.cat([x, texture, pncc], 1))
        return residual


class DualAttentionRenderer(nn.Module):
    """Lip-Attention and Face-Attention, fused by the lip mask (eq. 4), then decoded."""

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.config = config
        self.geometry = Encoder(config)
        self.lip = ReferenceAttention(config)
        self.face = ReferenceAttention(config)
        self.decoder = TextureDecoder(config)

    def attention(
        self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: Tensor, faces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The latents of the target's geometry [B, C, h, w], and the shares of the lip references [B, N_l, h, w] and of
        the face references [B, N_f, h, w] in every cell of the face window. All shares of a cell sum to 1.

        lips [B, N_l, 6, rows, columns] and faces [B, N_f, 6, h, w] are the differences of geometry; others as in
        `forward`.
        """
        geometry = self.geometry(pncc)
        place = _lip_place(lip_cell, *lips.shape[-2:])
        of_lips = self.lip(geometry[place].permute(0, 3, 1, 2), lips)
        batch, count = lips.shape[:2]
        placed = of_lips.new_zeros(batch, count, *geometry.shape[-2:])  # float32, also where the convolutions are not
        placed[place] = of_lips.permute(0, 2, 3, 1)
        return geometry, placed * lip_mask, self.face(geometry, faces) * (1 - lip_mask)

    def residual(self, texture: Tensor, geometry: Tensor, pncc: Tensor) -> Tensor:
        """The correction [B, 3, H, W] of the mixed texture [B, 3, H, W]."""
        residual: Tensor = self.decoder(texture, geometry, pncc)
        return residual

    def forward(self, pncc: Tensor, lip_mask: Tensor, lip_cell: Tensor, lips: References, faces: References) -> Tensor:
        """Render the face window [B, 3, H, W] in [-1, 1]; [B, 3, 2 H, 2 W] where lips and faces have fine textures.

        pncc [B, 3, H, W] of the target in [0, 1]; lip_mask [B, 1, rows, columns] in [0, 1], zero outside the lip
        window; lip_cell [B, 2] int64: row and column of the lip window inside the face window.
        """
        geometry, of_lips, of_faces = self.attention(pncc, lip_mask, lip_cell, lips.difference, faces.difference)
        if faces.pixels.shape[-1] == pncc.shape[-1]:
            texture = mixed(of_lips, of_faces, lip_cell, lips.pixels, faces.pixels)
            return texture + self.residual(texture, geometry, pncc)
        texture = mixed(of_lips, of_faces, lip_cell, lips.pixels, faces.pixels, FINE_CELL_PX)
        residual = self.residual(functional.avg_pool2d(texture, FINE), geometry, pncc)
        return texture + functional.interpolate(residual, scale_factor=FINE, mode="bilinear")


def mixed(
    of_lips: Tensor, of_faces: Tensor, lip_cell: Tensor, lips: Tensor, faces: Tensor, cell_px: int = CELL_PX
) -> Tensor:
    """The texture [B, 3, H, W]: lips [B, N_l, 3, …] in the lip window and faces [B, N_f, 3, H, W], mixed by their
    shares in the cells of the face window, of `cell_px` pixels. Shares are interpolated between the centres of cells,
    as steps would be visible."""
    texture = (faces * _enlarged(of_faces, cell_px)[:, :, None]).sum(1)
    place = _lip_place(lip_cell * cell_px, *lips.shape[-2:])
    shares = _enlarged(of_lips, cell_px)[place].permute(0, 3, 1, 2)
    lip_texture = (lips * shares[:, :, None]).sum(1).permute(0, 2, 3, 1)
    texture = texture.clone()
    texture[place] = texture[place] + lip_texture
    return texture


def _enlarged(cells: Tensor, cell_px: int) -> Tensor:
    """[B, K, h, w] of cells to [B, K, cell_px h, cell_px w] of pixels."""
    return functional.interpolate(cells, scale_factor=cell_px, mode="bilinear")


def _lip_place(lip_cell: Tensor, rows: int, columns: int) -> tuple[Tensor, slice, Tensor, Tensor]:
    """Index of the lip windows in [B, C, h, w]; the selection is [B, rows, columns, C]."""
    row = lip_cell[:, 0, None] + torch.arange(rows, device=lip_cell.device)
    column = lip_cell[:, 1, None] + torch.arange(columns, device=lip_cell.device)
    batch = torch.arange(lip_cell.shape[0], device=lip_cell.device)[:, None, None]  # len() would fix it on export
    return batch, slice(None), row[:, :, None], column[:, None, :]

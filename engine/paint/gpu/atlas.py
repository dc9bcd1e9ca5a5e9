"""The atlas: references that stay on a device, uploaded once and warped onto batches of targets.

The counterpart of `align.Aligner.faces` and `lips` for batches, in torch, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.morphable import CROP_PX
from engine.models.renderer import References
from engine.paint.gpu.places import Places
from engine.paint.gpu.raster import Rasteriser

COLUMNS = 32  # tiles of 256 px side by side: in a wider image, the coordinates of its far end would lose precision
RIM_PX = 2  # around a tile, repeating its edge, for the reach of a cubic kernel
CUBIC_STEP = 32  # OpenCV, on the CPU, samples textures at multiples of 1/32 px
ABSENT = 1.0  # a difference (model units, radians) so large that an empty slot gets no weight at all


class ReferenceAtlas:
    """Crops as tiles of one image, so that a batch samples any of them with one call, and their shapes.

    vertices: their number in a shape.  zoom: pixels of a crop for each of one of 256 px. All work is queued on the
    device's current stream.
    """

    def __init__(self, device: torch.device, rasteriser: Rasteriser, vertices: int, zoom: int = 1):
        self._rasteriser, self._zoom = rasteriser, zoom
        self._slots = Places()
        self._crop_px = zoom * CROP_PX
        self._tile_px, self._columns = self._crop_px + 2 * RIM_PX, COLUMNS // zoom
        self._image = torch.zeros(1, 3, 0, self._columns * self._tile_px, device=device)
        self._places = torch.zeros(0, vertices, 2, device=device)
        self._canonical = torch.zeros(0, vertices, 3, device=device)
        self._rotation = torch.zeros(0, 3, device=device)

    def reserve(self, count: int) -> int:
        """Make room for `count` references and return the first one's slot. Copies everything where no free places
        suffice, so call it when an avatar is opened."""
        first = self._slots.take(count)
        more = self._slots.count - len(self._places)
        rows = -(-self._slots.count // self._columns) * self._tile_px - self._image.shape[2]
        self._image = functional.pad(self._image, (0, 0, 0, max(0, rows)))
        self._places, self._canonical = (
            functional.pad(t, (0, 0, 0, 0, 0, more)) for t in (self._places, self._canonical)
        )
        self._rotation = functional.pad(self._rotation, (0, 0, 0, more))
        return first

    def release(self, first: int, count: int) -> None:
        """Another avatar may have the slots that `reserve` returned."""
        self._slots.give_back(first, count)

    @property
    def device_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self._image, self._places, self._canonical, self._rotation))

    def put(self, slot: int, crop: Tensor, mesh: Tensor, canonical: Tensor, rotation: Tensor) -> None:
        """Store a reference: crop [S, S, 3] with values of uint8, mesh [V, 3] in pixels of a crop of 256 px, canonical
        [V, 3] and rotation [3], all on the device."""
        row, column = (n * self._tile_px for n in divmod(slot, self._columns))
        tile = functional.pad(crop.permute(2, 0, 1)[None].float(), (RIM_PX,) * 4, mode="replicate")
        self._image[:, :, row : row + self._tile_px, column : column + self._tile_px] = tile
        self._places[slot] = self._zoom * mesh[:, :2] - 0.5  # pixel centres are whole numbers here
        self._canonical[slot], self._rotation[slot] = canonical, rotation

    def lay(
        self,
        slots: Tensor,
        canonical: Tensor,
        rotation: Tensor,
        coverage: tuple[Tensor, Tensor],
        cells: tuple[Tensor, Tensor],
        here: Tensor,
    ) -> References:
        """References slots [B, N] int64 (-1: none, with no weight) warped onto targets with canonical [B, V, 3] and
        rotation [B, 3], over the window of `coverage` (triangle [B, h, w], weights [B, h, w, 3]), in pixels of the
        crops; cells: the coverage at the centres of its cells. A pixel without a triangle keeps its place in the crop,
        `here` [B, 2, h, w], x and y."""
        present, slots = slots >= 0, slots.clamp(min=0)
        triangle, weights = coverage
        batch, height, width = triangle.shape
        count = slots.shape[1]
        places = self._places[slots].permute(0, 2, 1, 3).flatten(2)  # [B, V, 2 N]
        maps = self._rasteriser.spread(triangle, weights, places).view(batch, count, 2, height, width)
        maps = torch.where((triangle >= 0)[:, None, None], maps, here[:, None])
        pixels = self._sample(slots.flatten(), maps.flatten(0, 1)).view(3, batch, count, height, width)
        pixels = (pixels / 127.5 - 1).permute(1, 2, 0, 3, 4).contiguous()

        offsets = (self._canonical[slots] - canonical[:, None]).permute(0, 2, 1, 3).flatten(2)
        local = self._rasteriser.spread(*cells, offsets).view(batch, count, 3, *cells[0].shape[1:])
        turned = (self._rotation[slots] - rotation[:, None])[..., None, None].expand_as(local)
        difference = torch.cat([local, turned], 2)
        return References(pixels, torch.where(present[..., None, None, None], difference, ABSENT))

    def _sample(self, slots: Tensor, places: Tensor) -> Tensor:
        """Pixels of the crops slots [M] at places [M, 2, h, w]: [3, M, h, w] in 0 to 255, whole numbers."""
        corner = torch.stack([slots % self._columns, slots // self._columns], 1) * self._tile_px + RIM_PX
        # Beyond one pixel outside the crop its edge repeats.
        places = ((places * CUBIC_STEP).round() / CUBIC_STEP).clamp(-1, self._crop_px) + corner[:, :, None, None]
        height, width = self._image.shape[2:]
        across, down = (2 * places[:, 0] + 1) / width - 1, (2 * places[:, 1] + 1) / height - 1
        grid = torch.stack([across, down], -1).flatten(0, 1)[None]
        sampled = functional.grid_sample(self._image, grid, "bicubic", "border", align_corners=False)[0]
        return sampled.round().clamp(0, 255).view(3, *across.shape)

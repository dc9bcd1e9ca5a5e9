"""What tests of pictures share: a frame, and the comparison of two pictures."""

from __future__ import annotations

import numpy as np

ALIKE_DB = 50.0


def photo(height=360, width=480):
    """A frame with structure down to a few pixels."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + y / 31), np.cos(y / 7 - x / 50), np.sin((x + y) / 13)]
    return np.stack([127 + 80 * w for w in waves], -1).astype(np.uint8)


def painted_together(batch):
    """The pictures of a batch of (painter, index, lower)."""
    painter = batch[0][0]
    return [picture for (picture,) in painter.paint_together([(p, [(i, lower)], True) for p, i, lower in batch])]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


def check(picture, expected, base, alike_db=ALIKE_DB):
    """Assert that the picture is alike where the reference painted and the base frame elsewhere; the soft edge may end
    a pixel or two apart."""
    changed = (expected != base).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    inside = np.s_[max(0, rows[0] - 2) : rows[-1] + 3, max(0, columns[0] - 2) : columns[-1] + 3]
    assert psnr(picture[inside], expected[inside]) > alike_db
    assert psnr(base[inside], expected[inside]) < alike_db - 8, "something else than the frame itself was painted"
    outside = np.ones_like(changed)
    outside[inside] = False
    assert np.array_equal(picture[outside], expected[outside])

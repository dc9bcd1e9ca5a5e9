"""The frame sizes of the two passes over the source: the scan and the base video."""

from __future__ import annotations

from precompute.assessment import MIN_FACE_PX

BASE_SIZE = (1280, 720)  # longer and shorter side
FACE_RESERVE = 1.02  # rounding to even sides must not push a face below MIN_FACE_PX


def scan_size(width: int, height: int) -> tuple[int, int]:
    """Size (width, height) at which a source of `width` x `height` is scanned: scaled down to BASE_SIZE, even."""
    factor = _fit_factor(width, height)
    return _even(width * factor), _even(height * factor)


def base_size(width: int, height: int, face_px: float, *, keep_size: bool = False) -> tuple[int, int]:
    """Size (width, height) of the base video: scaled down to BASE_SIZE, even.

    A face of `face_px` source pixels never falls below MIN_FACE_PX. `keep_size` keeps the size of the source.
    """
    factor = 1.0 if keep_size else min(1.0, max(_fit_factor(width, height), FACE_RESERVE * MIN_FACE_PX / face_px))
    return _even(width * factor), _even(height * factor)


def _fit_factor(width: int, height: int) -> float:
    return min(1.0, BASE_SIZE[0] / max(width, height), BASE_SIZE[1] / min(width, height))


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))

"""Which pictures get a new mouth, how far, and why others keep theirs. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import binary_closing, maximum_filter1d, minimum_filter1d

from precompute.dubbing.people import Person, Run

MAX_YAW_DEG = 55.0
MIN_FACE_PX = 40.0  # of the source; a smaller mouth has fewer than ten pixels
MAX_LIP_ERROR_PX = 6.0  # of the 256 px crop
MAX_ERRORS = 3.0  # of the person's median
RAMP_S = 0.16  # from a picture's own mouth to the new one
FADE = 0.4  # of the ramp: the pixels fade in that part, the lips move over the whole
TALK_S, TALK_RANGE, TALK_OPEN = (
    0.5,
    0.03,
    0.05,
)  # motion of the lips within that time, and their opening, in model units
TALK_PAUSE_S = 0.6  # a shorter pause belongs to the talk

KEPT = ("turned", "small", "unsure", "covered", "passage", "at rest")
"""Reasons why a picture with the face keeps its own mouth: turned away too far, too small, the fit is unsure, an object
before the mouth, outside --from and --to, and nothing to say and nothing to close."""


@dataclass(frozen=True)
class Change:
    """For each picture [T]: `lips` in [0, 1], how far the new lips replace the picture's own; `pixels` in [0, 1], the
    weight of the painted pixels; `kept`, one of KEPT or ``; `closes`: only because the original speaks."""

    lips: np.ndarray
    pixels: np.ndarray
    kept: np.ndarray
    closes: np.ndarray


def usable(person: Person, run: Run) -> np.ndarray:
    """For each picture [T] of the run one of the reasons `turned`, `small`, `unsure`, `covered`, or ``."""
    error = np.median(np.concatenate([r.lip_error_px[r.seen] for r in person.runs]))
    reason = np.full(len(run), "", dtype="U8")
    reason[~run.seen | (run.lip_error_px > max(MAX_ERRORS * error, 0.5 * MAX_LIP_ERROR_PX))] = "unsure"
    reason[run.lip_error_px > MAX_LIP_ERROR_PX] = "unsure"
    reason[run.covered] = "covered"
    reason[run.face_px < MIN_FACE_PX] = "small"
    reason[np.abs(run.yaw_deg) > MAX_YAW_DEG] = "turned"
    return reason


def talks(run: Run, rate_hz: float) -> np.ndarray:
    """Where the face talks in the source, [T] bool: its lips move, or stand open between two motions."""
    window = max(3, round(TALK_S * rate_hz)) | 1
    moves = maximum_filter1d(run.opening, window) - minimum_filter1d(run.opening, window) > TALK_RANGE
    pause = max(1, round(TALK_PAUSE_S * rate_hz))
    padded = np.pad(moves, pause)
    joined = binary_closing(padded, np.ones(pause))[pause:-pause]
    near = maximum_filter1d(joined.astype(np.uint8), 2 * round(rate_hz) + 1) > 0
    talking: np.ndarray = joined | (near & (run.opening > TALK_OPEN))
    return talking


def change(reason: np.ndarray, talking: np.ndarray, speech: np.ndarray, allowed: np.ndarray, rate_hz: float) -> Change:
    """What happens to T pictures of one face that are shown one after the other, of one shot.

    reason [T]: of `usable`.  talking [T] bool: of `talks`.  speech [T] in [0, 1]: how far new lips follow speech.
    allowed [T] bool: within --from and --to, and this face is to speak.
    """
    needed = allowed & ((speech > 0) | talking)
    ramp = max(1, round(RAMP_S * rate_hz))
    wish = 1 - _distance(needed) / (ramp + 1)
    can = _distance((reason != "") | ~allowed) / (ramp + 1)  # no ramp at a cut, where all the picture changes
    lips = np.minimum(wish, can).clip(0, 1)
    kept = np.where(reason != "", reason, np.where(allowed, "at rest", "passage")).astype("U8")
    kept[lips > 0] = ""
    return Change(
        lips=lips,
        pixels=(lips / FADE).clip(0, 1),
        kept=kept,
        closes=(lips > 0) & talking & (speech == 0),
    )


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance [T] of every place to the nearest true one; infinite where there is none."""
    at = np.arange(len(mask))
    last = np.maximum.accumulate(np.where(mask, at, -np.inf))
    following = np.minimum.accumulate(np.where(mask, at, np.inf)[::-1])[::-1]
    distance: np.ndarray = np.minimum(at - last, following - at)
    return distance


def stretches(reasons: Sequence[str], start: int) -> list[tuple[int, int, str]]:
    """(first, last + 1, reason) of consecutive pictures with one reason, from picture `start` on."""
    edges = [0, *(i for i in range(1, len(reasons)) if reasons[i] != reasons[i - 1]), len(reasons)]
    return [(start + a, start + b, str(reasons[a])) for a, b in pairwise(edges) if b > a]

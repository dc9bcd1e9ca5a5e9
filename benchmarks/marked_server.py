"""`personastream serve` whose units carry marks: one frame in fifty has a white corner while its sound beeps.

Units are marked as they leave the session. The server encodes and sends them as usual, so the distance between flash
and beep at the viewer is the skew that encoding, network, jitter buffers and the browser add.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.live.session import Session
from engine.media import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, MediaUnit
from engine.queues import MediaQueue
from streaming.__main__ import main

MARK_FRAMES = 2 * FPS  # far enough apart to pair each flash with its beep
BEEP_HZ = 1_000
BEEP = (12_000 * np.sin(2 * np.pi * BEEP_HZ * np.arange(SAMPLES_PER_FRAME) / SAMPLE_RATE_HZ)).astype(np.int16)


def marked(unit: MediaUnit) -> MediaUnit:
    """The unit with a black corner and silence, or in every MARK_FRAMES-th one with a white corner and a beep."""
    flash = unit.index % MARK_FRAMES == 0
    image = unit.image.copy()
    height, width = image.shape[:2]
    image[: height // 8, : width // 8] = 255 if flash else 0
    return dataclasses.replace(unit, image=image, samples=BEEP if flash else np.zeros_like(BEEP))


class MarkedQueue(MediaQueue[MediaUnit]):
    async def put(self, item: MediaUnit) -> None:
        await super().put(marked(item))


def subscribe(session: Session, capacity: int = 4, *, events_only: bool = False) -> MediaQueue[MediaUnit]:
    queue = original(session, capacity, events_only=events_only)
    queue.__class__ = MarkedQueue
    return queue


if __name__ == "__main__":
    original = Session.subscribe
    Session.subscribe = subscribe  # type: ignore[assignment, method-assign]
    main()

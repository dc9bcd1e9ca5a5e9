"""The idle video: every base frame with the mouth at rest, so that a silent session costs no inference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from torch import Tensor

from engine.avatar.video import GOP_FRAMES
from engine.models.morphable import MorphableModel
from precompute.video_writer import VideoWriter

Paint = Callable[[int, Tensor], np.ndarray]
"""(index of a base frame, lower vertices [V_low, 3] in model units) -> full frame [H, W, 3] uint8."""


def resting_lower_face(model: MorphableModel, alpha: Tensor, rest_beta: Tensor) -> Tensor:
    """Lower vertices [T, V_low, 3] with the shape alpha [T, K_s] of each frame and the expression rest_beta [K_e]."""
    return model.vertices(alpha, rest_beta.expand(len(alpha), -1))[:, model.lower]


def painted(lower: Tensor, painters: Sequence[Paint]) -> Iterator[np.ndarray]:
    """Paint base frame i with lower[i] [V_low, 3], for all i in order. Each painter works on one thread at a time."""
    free: SimpleQueue[Paint] = SimpleQueue()
    for painter in painters:
        free.put(painter)

    def group(start: int) -> list[np.ndarray]:
        painter = free.get()
        try:
            return [painter(i, lower[i]) for i in range(start, min(start + GOP_FRAMES, len(lower)))]
        finally:
            free.put(painter)

    with ThreadPoolExecutor(len(painters), thread_name_prefix="idle") as pool:
        waiting: deque[Future[list[np.ndarray]]] = deque()
        try:
            for start in range(0, len(lower), GOP_FRAMES):
                waiting.append(pool.submit(group, start))
                if len(waiting) > len(painters):  # one group ahead of each painter bounds the memory
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def write_idle(
    path: Path,
    size: tuple[int, int],
    lower: Tensor,
    painters: Sequence[Paint],
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Write len(lower) frames of `size` (width, height); frame i is base frame i with the lower face lower[i]."""
    with VideoWriter(path, *size) as writer:
        for done, image in enumerate(painted(lower, painters), start=1):
            writer.add(image)
            on_frame(done)

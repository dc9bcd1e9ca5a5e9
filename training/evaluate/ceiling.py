"""How well any predictor could do that does not know the person: two people who say the same word.

Word clips of different people are paired where their speech features agree best under dynamic time warping, the
openings of the two mouths are warped along, and their correlation is taken. If a mouth is the sum of a part that all
people share and one that is a person's own, the best predictor reaches the root of that correlation.
"""

from __future__ import annotations

import numpy as np
import torch
from dtaidistance import dtw_ndim
from torch import Tensor

WORD_FRAMES = (18, 50)
PAIRS = 100
WARP_FRAMES = 8


def ceiling(words: list[tuple[str, Tensor, Tensor]], pairs: int = PAIRS) -> dict[str, float]:
    """words: identity, features [T, D] and opening [T] of each clip. Mean and median correlation of the best pairs, and
    the root of the mean."""
    words = [word for word in words if WORD_FRAMES[0] <= len(word[1]) <= WORD_FRAMES[1]]
    if len(words) < 2:
        return {"pairs": 0}
    people = np.array([identity for identity, _, _ in words])
    rows = [np.ascontiguousarray(features.double().numpy()) for _, features, _ in words]
    distance = dtw_ndim.distance_matrix_fast(rows, window=WARP_FRAMES, compact=False)
    length = np.array([len(row) for row in rows])
    distance = distance / np.sqrt(length[:, None] + length)
    distance[people[:, None] == people] = np.inf  # also below the diagonal, where nothing was computed
    best = np.dstack(np.unravel_index(np.argsort(distance, axis=None)[:pairs], distance.shape))[0]
    values = []
    for i, j in best:
        path = np.array(dtw_ndim.warping_path(rows[i], rows[j], window=WARP_FRAMES))
        aligned = torch.stack([words[i][2][path[:, 0]], words[j][2][path[:, 1]]])
        values.append(float(torch.corrcoef(aligned)[0, 1]))
    mean = float(np.nanmean(values))
    return {
        "clips": len(words),
        "people": len(set(people)),
        "pairs": len(values),
        "correlation_mean": mean,
        "correlation_median": float(np.nanmedian(values)),
        "best_predictor": float(np.sqrt(max(mean, 0.0))),
    }

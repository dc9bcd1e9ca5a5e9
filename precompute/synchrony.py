"""The lag of tracked lips behind those that the network predicts from the sound."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LAG_FRAMES = 8


def lag_curve(predicted: Tensor, true: Tensor) -> Tensor:
    """Correlation of true motion with predicted motion that is delayed by -8 ... 8 frames, [17].

    predicted, true: [T, ...]; all coordinates are centred over the overlap and pooled.
    """
    predicted, true = predicted.flatten(1), true.flatten(1)
    frames, curve = len(predicted), []
    for lag in range(-MAX_LAG_FRAMES, MAX_LAG_FRAMES + 1):
        a = true[max(lag, 0) : frames + min(lag, 0)]
        b = predicted[max(-lag, 0) : frames + min(-lag, 0)]
        a, b = a - a.mean(0), b - b.mean(0)
        curve.append((a * b).sum() / (a.norm() * b.norm() + 1e-9))
    return torch.stack(curve)


def peak(curve: Tensor) -> tuple[float, float]:
    """Lag in frames (a parabola through the top three) and height of the best correlation."""
    top = int(curve.argmax())
    if not 0 < top < len(curve) - 1:
        return float(top - MAX_LAG_FRAMES), float(curve[top])
    left, middle, right = curve[top - 1 : top + 2].tolist()
    between = 0.5 * (left - right) / (left - 2 * middle + right - 1e-9)
    return top - MAX_LAG_FRAMES + between, middle


def high_pass(rows: Tensor) -> Tensor:
    """rows [T, C] less their mean over the surrounding second: smiles and drift have no timing."""
    window = min(25, len(rows) // 2 * 2 - 1)
    padded = torch.nn.functional.pad(rows.T[None], (window // 2, window // 2), mode="replicate")
    return rows - torch.nn.functional.avg_pool1d(padded, window, stride=1)[0].T

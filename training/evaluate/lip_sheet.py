"""Pictures of moving lips: curves of openings, and drawn mouths side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from engine.models.morphable import LIPS_INNER, LIPS_OUTER
from engine.models.persona import no_persona
from training.evaluate.halves import Half, Judge, Sound

MOUTH_PX = 96
CURVES, CURVE_FRAMES = 8, 250
SHEET_FRAMES, SHEET_STEP = 18, 3
SCALE = 1.7  # mouth pictures an interocular distance
SKIN, LIPS, INSIDE = (205, 215, 235), (105, 105, 200), (40, 20, 60)


def draw_curves(judge: Judge, halves: list[tuple[Half, Sound]], path: Path) -> None:
    """The openings of the first seconds of the judged halves of up to CURVES people: true, ours, plain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    people = list({half.example.clip.identity: (half, sound) for half, sound in reversed(halves)}.values())[:CURVES]
    figure, axes = pyplot.subplots(
        len(people), 1, figsize=(14, 2 * len(people)), constrained_layout=True, squeeze=False
    )
    for axis, (half, sound) in zip(axes[:, 0], people, strict=True):
        frames = slice(half.judged.start, min(half.judged.stop, half.judged.start + CURVE_FRAMES))
        template = judge.template(half.example)
        curves = {
            "true": judge.truth(half.example.beta),
            "ours": judge.speak(half, sound, half.persona.change),
            "without persona": judge.speak(half, sound, no_persona()),
        }
        for (label, offsets), style in zip(curves.items(), ("k-", "C0-", "C1:"), strict=True):
            opening = judge.space.opening(template + offsets[frames])
            axis.plot(np.arange(len(opening)) / 25, opening, style, label=label, linewidth=1.2)
        axis.set_title(half.name, fontsize=9)
        axis.set_ylim(0, None)
    axes[0, 0].legend(loc="upper right")
    axes[-1, 0].set_xlabel("s; opening in units of the distance of the outer eye corners")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def draw_personas(judge: Judge, halves: list[tuple[Half, Sound]], out: Path) -> None:
    """For every person a sheet of drawn mouths on the judged sound: true, own persona, none, another's persona."""
    people = list({half.example.clip.identity: (half, sound) for half, sound in reversed(halves)}.values())
    for i, (half, sound) in enumerate(people):
        other = people[(i + 1) % len(people)][0]
        rows = {
            "true": judge.truth(half.example.beta),
            "own": judge.speak(half, sound, half.persona.change),
            "none": judge.speak(half, sound, no_persona()),
            other.example.clip.identity: judge.speak(half, sound, other.persona.change),
        }
        frames = range(half.judged.start, half.judged.stop)[: SHEET_FRAMES * SHEET_STEP : SHEET_STEP]
        template = judge.template(half.example)
        sheet = [
            np.concatenate([_label(name), *(draw_mouth(judge, template + offsets[t]) for t in frames)], 1)
            for name, offsets in rows.items()
        ]
        cv2.imwrite(str(out / f"persona-{half.example.clip.identity}.png"), np.concatenate(sheet))


def draw_mouth(judge: Judge, lower: Tensor) -> np.ndarray:
    """Lower vertices [V_low, 3] as filled lips, BGR [MOUTH_PX, MOUTH_PX, 3] uint8."""
    place = {int(vertex): i for i, vertex in enumerate(judge.generator.lower)}
    tile = np.full((MOUTH_PX, MOUTH_PX, 3), SKIN, np.uint8)
    centre = lower[[place[v] for v in LIPS_OUTER], :2].mean(0).numpy()
    for ring, colour in ((LIPS_OUTER, LIPS), (LIPS_INNER, INSIDE)):
        points = (lower[[place[v] for v in ring], :2].numpy() - centre) * MOUTH_PX * SCALE + MOUTH_PX / 2
        cv2.fillPoly(tile, [np.rint(points * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4)
    return tile


def _label(text: str) -> np.ndarray:
    tile = np.full((MOUTH_PX, MOUTH_PX, 3), 255, np.uint8)
    cv2.putText(tile, text, (6, MOUTH_PX // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return tile

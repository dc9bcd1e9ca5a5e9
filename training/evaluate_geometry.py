"""How well speech drives the lips of people who were never trained on.

- mouth-opening correlation: Pearson's r of true and predicted height of the inner lips over the frames of one clip, of
  clips of at least two seconds; reported as mean and median over clips, and pooled (all frames of all clips together,
  each clip less its own mean).
- LMD: mean distance of the 40 lip landmarks, frontal view (x, y), in percent of the distance of the outer eye corners.
- gain: 1 - LMD / LMD of a still mouth, the mean of the very clip.
- best lag: where the correlation, averaged over clips, peaks when the prediction is delayed by so many frames.

Each clip's sound is first moved by its offset in `runs/offsets.csv`, which models of training people estimated
("before" is without that). The style is the clip's own, as in the paper's self-reenactment.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.speech import RATE_HZ, SpeechConfig, SpeechEncoder, extract
from engine.weights import default_path, load, load_face_model
from training.geometry import aligned_sound
from training.lips import Example, GeometryLoss, load_examples, predict
from training.offsets import MAX_OFFSET_FRAMES, find_offsets, lag_curve

log = logging.getLogger(__name__)

MIN_FRAMES = 50
QUIET_FRAMES = 25  # one second of silence after each clip
CLOSING_FRAMES = 8  # 320 ms: the mouth closes in 200-300 ms, the last frame of speech may lie beyond the last sound


@dataclass(frozen=True)
class Judged:
    """A clip: true and predicted lower offsets [T, V_low, 3]; `after` [25, V_low, 3] is what silence then does."""

    name: str
    template: Tensor
    true: Tensor
    made: Tensor
    after: Tensor


class Judge:
    """Runs one pair of networks over clips."""

    def __init__(self, encoder: SpeechEncoder, generator: GeometryGenerator, model: MorphableModel) -> None:
        self.encoder, self.generator, self.model = encoder, generator, model
        self.measure = GeometryLoss(model)
        self.lips = torch.isin(generator.lower, torch.tensor([*LIPS_OUTER, *LIPS_INNER]))

    def run(self, example: Example, offset_frames: float, style_beta: Tensor | None) -> Judged:
        """Sound, moved by the offset and followed by silence, through both networks."""
        frames = len(example.beta)
        sound = aligned_sound(example, offset_frames)
        sound = np.concatenate([sound, np.zeros(RATE_HZ * QUIET_FRAMES // 25, np.float32)])
        made = predict(self.generator, self.model, extract(self.encoder, sound), example.alpha, style_beta)
        template = (self.model.mean + self.model.shape(example.alpha))[self.generator.lower]
        true = self.measure.offsets(example.beta)
        return Judged(example.clip.name, template, true, made[:frames], made[frames:])

    def openings(self, judged: Judged) -> tuple[Tensor, Tensor]:
        """True and predicted height of the inner lips [T]."""
        return self.measure.opening(judged.template + judged.true), self.measure.opening(judged.template + judged.made)

    def lmd(self, judged: Judged) -> tuple[float, float]:
        """LMD in percent of the interocular distance, of the prediction and of the clip's mean mouth."""
        true, made = judged.true[:, self.lips, :2], judged.made[:, self.lips, :2]
        still = true.mean(0)
        return tuple(100 * float(torch.linalg.vector_norm(true - other, dim=-1).mean()) for other in (made, still))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm() + 1e-9))


def summarise(judge: Judge, clips: list[Judged]) -> dict[str, Any]:
    """The figures of the module's docstring over `clips`."""
    openings = [judge.openings(clip) for clip in clips]
    single = [_correlation(*pair) for pair in openings]
    centred = [torch.cat([pair[side] - pair[side].mean() for pair in openings]) for side in (0, 1)]
    curve = torch.stack([lag_curve(made[:, None], true[:, None]) for true, made in openings]).mean(0)
    lmd, still = (np.array(values) for values in zip(*[judge.lmd(clip) for clip in clips], strict=True))
    return {
        "clips": len(clips),
        "correlation_mean": float(np.mean(single)),
        "correlation_median": float(np.median(single)),
        "correlation_pooled": _correlation(*centred),
        "opening_deviation_ratio": float(centred[1].std() / centred[0].std()),
        "lmd_percent": float(lmd.mean()),
        "lmd_mean_mouth_percent": float(still.mean()),
        "lmd_gain_percent": float(100 * (1 - lmd.mean() / still.mean())),
        "best_lag_frames": int(curve.argmax()) - MAX_OFFSET_FRAMES,
    }


def quiet(judge: Judge, clips: list[Judged]) -> dict[str, float]:
    """What silence does after speech: opening against the clip's true range, and how much the lips still move."""
    shares, motion = [], []
    for clip in clips:
        true, _ = judge.openings(clip)
        low, middle = torch.quantile(true, torch.tensor([0.1, 0.5])).tolist()
        after = judge.measure.opening(clip.template + clip.after)[CLOSING_FRAMES:]
        shares.append(float(after.mean() - low) / max(middle - low, 1e-3))
        step = torch.linalg.vector_norm((clip.after[1:] - clip.after[:-1])[CLOSING_FRAMES:, judge.lips], dim=-1)
        spoken = torch.linalg.vector_norm(clip.true[1:, judge.lips] - clip.true[:-1, judge.lips], dim=-1)
        motion.append(float(step.mean() / spoken.mean()))
    return {
        "opening_after_320_ms": float(np.median(shares)),  # 0: as closed as the clip's lowest tenth, 1: its median
        "motion_after_320_ms": float(np.median(motion)),  # of the motion while speaking
    }


def _plot(judge: Judge, clips: list[Judged], path: Path) -> None:
    """Curves of the mouth's opening, true and predicted, of up to eight clips; silence follows the dotted line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(clips), 1, figsize=(14, 2 * len(clips)), constrained_layout=True, squeeze=False)
    for axis, clip in zip(axes[:, 0], clips, strict=True):
        true, made = judge.openings(clip)
        after = judge.measure.opening(clip.template + clip.after)
        seconds = np.arange(len(true) + len(after)) / 25
        axis.plot(seconds[: len(true)], true, label="true")
        axis.plot(seconds, torch.cat([made, after]), label="from speech")
        axis.axvline(len(true) / 25, linestyle=":", color="black")
        axis.set_title(f"{clip.name}: r = {_correlation(true, made):.2f}", fontsize=9)
        axis.set_ylim(0, None)
    axes[0, 0].legend(loc="upper right")
    axes[-1, 0].set_xlabel("s; opening in units of the distance of the outer eye corners")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def evaluate(
    data: Path, runs: Path, out: Path, *, speech: Path | None = None, geometry: Path | None = None
) -> dict[str, Any]:
    """Judge weights (the embedded ones by default) on the real validation people.

    Writes `out`/geometry.json and `out`/geometry.png and returns what the JSON holds.
    """
    model = load_face_model()
    judge = Judge(
        load(SpeechEncoder, SpeechConfig, speech or default_path("speech")),
        load(GeometryGenerator, GeometryConfig, geometry or default_path("geometry")),
        model,
    )
    offsets = find_offsets(data, runs)
    examples = [e for e in load_examples(data, runs) if e.clip.split == "val" and e.clip.kind == "real"]
    examples = [e for e in examples if len(e.beta) >= MIN_FRAMES]
    shift = {e.clip.name: offsets[e.clip.name].frames for e in examples}
    other = {e.clip.name: next(o for o in examples[i:] + examples if o.clip.identity != e.clip.identity).beta
             for i, e in enumerate(examples)}  # fmt: skip
    own = [judge.run(e, shift[e.clip.name], e.beta) for e in examples]
    locked = [clip for clip in own if offsets[clip.name].locked]
    report = {
        "people": len({e.clip.identity for e in examples}),
        "after_offset_correction": summarise(judge, own),
        "locked_clips_only": summarise(judge, locked),
        "before_offset_correction": summarise(judge, [judge.run(e, 0.0, e.beta) for e in examples]),
        "no_style": summarise(judge, [judge.run(e, shift[e.clip.name], None) for e in examples]),
        "style_of_another": summarise(judge, [judge.run(e, shift[e.clip.name], other[e.clip.name]) for e in examples]),
        "silence": quiet(judge, own),
        "each": {
            clip.name: {
                "correlation": round(_correlation(*judge.openings(clip)), 3),
                "lmd_percent": round(judge.lmd(clip)[0], 2),
                "lmd_mean_mouth_percent": round(judge.lmd(clip)[1], 2),
                "offset_frames": shift[clip.name],
                "match": offsets[clip.name].match,
            }
            for clip in own
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "geometry.json").write_text(json.dumps(report, indent=2) + "\n")
    longest = {e.clip.identity: e.clip.name for e in sorted(examples, key=lambda e: len(e.beta))}
    chosen = [_last_seconds(clip) for clip in own if clip.name in longest.values()][:8]
    _plot(judge, chosen, out / "geometry.png")
    return report


def _last_seconds(clip: Judged) -> Judged:
    """The last twelve seconds: more cannot be read in a plot."""
    return replace(clip, true=clip.true[-300:], made=clip.made[-300:])

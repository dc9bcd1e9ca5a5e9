"""Figures of the geometry generator on unseen people: lips driven by speech.

- mouth-opening correlation: Pearson's r of true and predicted height of the inner lips over the frames of one clip, of
  clips of at least two seconds; reported as mean and median over clips, and pooled (all frames of all clips together,
  each clip less its own mean).
- LMD: mean distance of the 40 lip landmarks, frontal view (x, y), in percent of the distance of the outer eye corners.
- gain: 1 - LMD / LMD of a still mouth, the mean of the very clip.
- lag: the delay of the prediction, in frames, at which the correlation peaks, to a tenth of a frame by a parabola
  through the peak; "best lag" is the lag of the mean curve.
- jerk: third difference of the lip landmarks, mean length, against the truth's.
- sync: offset and confidence by `training.evaluate.critics.SyncExpert`, a network trained on the training people: of
  the true lips, of the predicted lips, and of the true lips with the sound of another clip.
- StyleSim (§4.1): cosine of the style vectors (`training.evaluate.critics.StyleExpert`) of a person's own lips and of
  lips predicted with this person's style from the next person's speech, as in dubbing. For comparison: no style, the
  next person's style, two halves of the true clip (the maximum) and two people (chance).

The sound of each clip is first moved by its offset in `runs/offsets.csv`, which models of training people estimated;
the figures "before" leave the sound in place. The style is the clip's own, as in the paper's self-reenactment.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.speech import RATE_HZ, SpeechConfig, SpeechEncoder, extract
from engine.models.weights import default_path, fingerprint, load, load_face_model
from training.evaluate.critics import STYLE_CROP_FRAMES, StyleExpert, SyncExpert, style_expert, sync_expert
from training.evaluate.spoken import judge_spoken
from training.geometry.loss import Example, GeometryLoss, load_examples, predict
from training.geometry.offsets import MAX_OFFSET_FRAMES, find_offsets, lag_curve
from training.geometry.train import aligned_sound, heard_items

log = logging.getLogger(__name__)

MIN_FRAMES = 50
QUIET_FRAMES = 25  # one second of silence after each clip
CLOSING_FRAMES = 5  # 200 ms
LONG_SILENCE_S = 60


@dataclass(frozen=True)
class Judged:
    """A clip: true and predicted lower offsets [T, V_low, 3]; `after` [25, V_low, 3] is what silence
    then does; `features` [T, D] are what was heard."""

    name: str
    template: Tensor
    true: Tensor
    made: Tensor
    after: Tensor
    features: Tensor


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
        features = extract(self.encoder, sound)
        made = predict(self.generator, self.model, features, example.alpha, style_beta)
        template = (self.model.mean + self.model.shape(example.alpha))[self.generator.lower]
        true = self.measure.offsets(example.beta)
        return Judged(example.clip.name, template, true, made[:frames], made[frames:], features[:frames])

    def openings(self, judged: Judged) -> tuple[Tensor, Tensor]:
        """True and predicted height of the inner lips [T]."""
        return self.measure.opening(judged.template + judged.true), self.measure.opening(judged.template + judged.made)

    def lmd(self, judged: Judged) -> tuple[float, float]:
        """LMD in percent of the interocular distance, of the prediction and of the clip's mean mouth."""
        true, made = judged.true[:, self.lips, :2], judged.made[:, self.lips, :2]
        still = true.mean(0)
        return tuple(100 * float(torch.linalg.vector_norm(true - other, dim=-1).mean()) for other in (made, still))


def _mean_lmd(judge: Judge, clips: list[Judged]) -> float:
    return float(np.mean([judge.lmd(clip)[0] for clip in clips]))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm() + 1e-9))


def summarise(judge: Judge, clips: list[Judged]) -> dict[str, Any]:
    """The figures of the module's docstring over `clips`."""
    openings = [judge.openings(clip) for clip in clips]
    single = [_correlation(*pair) for pair in openings]
    centred = [torch.cat([pair[side] - pair[side].mean() for pair in openings]) for side in (0, 1)]
    curve = torch.stack([lag_curve(made[:, None], true[:, None]) for true, made in openings]).mean(0)
    lags = [_peak(lag_curve(made[:, None], true[:, None])) for true, made in openings]
    jerks = [[_jerk(side[:, judge.lips]) for side in (clip.made, clip.true)] for clip in clips]
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
        "best_lag_frames": _peak(curve),
        "lag_median_frames": float(np.median(np.abs(lags))),
        "jerk_ratio": float(np.median([made / true for made, true in jerks])),
    }


def _peak(curve: Tensor) -> float:
    """Lag of the highest point of a curve over -MAX_OFFSET_FRAMES ... MAX_OFFSET_FRAMES, between samples."""
    top = int(curve.argmax())
    if top in (0, len(curve) - 1):
        return float(top - MAX_OFFSET_FRAMES)
    low, middle, high = curve[top - 1 : top + 2].tolist()
    return top - MAX_OFFSET_FRAMES + 0.5 * (low - high) / (low - 2 * middle + high - 1e-9)


def _jerk(lips: Tensor) -> float:
    return float(torch.linalg.vector_norm(lips.diff(n=3, dim=0), dim=-1).mean())


def judge_sync(expert: SyncExpert, clips: list[Judged]) -> dict[str, Any]:
    """Offset and confidence of true lips, predicted lips, and true lips beside the next clip's sound."""
    found: dict[str, list[tuple[int, float]]] = {"true": [], "ours": [], "wrong_sound": []}
    for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
        frames = min(len(clip.true), len(other.features))
        found["true"].append(expert.judge(clip.features, clip.true))
        found["ours"].append(expert.judge(clip.features, clip.made))
        found["wrong_sound"].append(expert.judge(other.features[:frames], clip.true[:frames]))
    return {
        which: {
            "within_1_frame": float(np.mean([abs(offset) <= 1 for offset, _ in pairs])),
            "median_abs_offset": float(np.median([abs(offset) for offset, _ in pairs])),
            "confidence": float(np.mean([confidence for _, confidence in pairs])),
        }
        for which, pairs in found.items()
    }


def judge_style(
    judge: Judge, expert: StyleExpert, examples: list[Example], heard: list[Judged], out: Path
) -> dict[str, float]:
    """StyleSim as in the module's docstring; draws `out`/style.png, the t-SNE of true and dubbed stretches."""
    people = {
        e.clip.identity: (e, j) for e, j in sorted(zip(examples, heard, strict=True), key=lambda p: len(p[0].beta))
    }
    pairs = list(people.values())
    sums: dict[str, list[float]] = defaultdict(list)
    points, colours, dubbed = [], [], []
    with torch.inference_mode():
        for i, (example, clip) in enumerate(pairs):
            other, sound = pairs[(i + 1) % len(pairs)]
            made = {
                "own_style": example.beta,
                "no_style": None,
                "style_of_another": other.beta,
            }
            true, middle = expert(clip.true[None])[0], len(clip.true) // 2
            for name, style in made.items():
                lips = predict(judge.generator, judge.model, sound.features, example.alpha, style)
                sums[name].append(float(expert(lips[None])[0] @ true))
                if name == "own_style":
                    pieces = [*clip.true.split(STYLE_CROP_FRAMES), *lips.split(STYLE_CROP_FRAMES)]
                    pieces = [piece for piece in pieces if len(piece) > STYLE_CROP_FRAMES // 2]
                    points += [expert(piece[None])[0] for piece in pieces]
                    colours += [i] * len(pieces)
                    dubbed += [k >= len(pieces) - len(lips.split(STYLE_CROP_FRAMES)) for k in range(len(pieces))]
            sums["true_halves"].append(float(expert(clip.true[None, :middle])[0] @ expert(clip.true[None, middle:])[0]))
            sums["another_person"].append(float(expert(sound.true[None])[0] @ true))
    _plot_styles(torch.stack(points).numpy(), np.array(colours), np.array(dubbed), out / "style.png")
    return {name: float(np.mean(values)) for name, values in sums.items()}


def _plot_styles(points: np.ndarray, people: np.ndarray, dubbed: np.ndarray, path: Path) -> None:
    import matplotlib
    from sklearn.manifold import TSNE

    matplotlib.use("Agg")
    from matplotlib import pyplot

    flat = TSNE(metric="cosine", init="random", perplexity=min(12, len(points) - 1), random_state=0).fit_transform(
        points
    )
    figure, axis = pyplot.subplots(figsize=(8, 7), constrained_layout=True)
    for which, marker in ((False, "o"), (True, "x")):
        shown = flat[dubbed == which]
        axis.scatter(
            *shown.T, c=people[dubbed == which], cmap="tab20", marker=marker, label="dubbed" if which else "true"
        )
    axis.legend()
    axis.set_title("style vectors (t-SNE); a colour is a person", fontsize=9)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def quiet(judge: Judge, clips: list[Judged]) -> dict[str, float]:
    """What silence does after speech: opening against the clip's true range, and how much the lips still move."""
    shares, motion = [], []
    for clip in clips:
        true, _ = judge.openings(clip)
        low, middle = torch.quantile(true, torch.tensor([0.1, 0.5])).tolist()
        after = judge.measure.opening(clip.template + clip.after)[CLOSING_FRAMES:]
        shares.append(float(after.mean() - low) / max(middle - low, 1e-3))
        step = (clip.after[1:] - clip.after[:-1])[CLOSING_FRAMES:, judge.lips].square().sum(-1)
        spoken = (clip.made[1:] - clip.made[:-1])[:, judge.lips].square().sum(-1)
        motion.append(float(step.mean() / spoken.mean()))
    still = np.zeros(LONG_SILENCE_S * RATE_HZ, np.float32)
    held = predict(
        judge.generator, judge.model, extract(judge.encoder, still), torch.zeros(len(judge.model.shape_basis)), None
    )
    drift = torch.linalg.vector_norm((held[-1] - held[5 * 25])[judge.lips], dim=-1).max()
    return {
        "opening_after_200_ms": float(np.median(shares)),  # 0: as closed as the clip's lowest tenth, 1: its median
        "motion_energy_after_200_ms": float(np.median(motion)),  # squared speed, of that while speaking
        "drift_percent_in_60_s": 100 * float(drift),  # of the interocular distance, largest of the lip landmarks
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

    Writes `out`/geometry.json with curves in geometry.png, styles in style.png and test sentences in spoken.png, and
    returns what the JSON holds.
    """
    model, speech = load_face_model(), speech or default_path("speech")
    judge = Judge(
        load(SpeechEncoder, SpeechConfig, speech),
        load(GeometryGenerator, GeometryConfig, geometry or default_path("geometry")),
        model,
    )
    offsets = find_offsets(data, runs)
    everything = load_examples(data, runs)
    examples = [e for e in everything if e.clip.split == "val" and e.clip.kind == "real" and len(e.beta) >= MIN_FRAMES]
    shift = {e.clip.name: offsets[e.clip.name].frames for e in examples}
    other = {e.clip.name: next(o for o in examples[i:] + examples if o.clip.identity != e.clip.identity).beta
             for i, e in enumerate(examples)}  # fmt: skip
    own = [judge.run(e, shift[e.clip.name], e.beta) for e in examples]
    locked = [clip for clip in own if offsets[clip.name].locked]
    heard = heard_items(runs, speech, everything, offsets, model)
    sync = sync_expert(heard, judge.measure, judge.lips, runs / "geometry" / f"sync-{fingerprint(speech)}.pt")
    style = style_expert(everything, judge.measure, runs / "geometry" / "style.pt")
    out.mkdir(parents=True, exist_ok=True)
    no_style = [judge.run(e, shift[e.clip.name], None) for e in examples]
    of_another = [judge.run(e, shift[e.clip.name], other[e.clip.name]) for e in examples]
    report = {
        "people": len({e.clip.identity for e in examples}),
        "after_offset_correction": summarise(judge, own),
        "locked_clips_only": summarise(judge, locked),
        "before_offset_correction": summarise(judge, [judge.run(e, 0.0, e.beta) for e in examples]),
        "no_style": summarise(judge, no_style),
        "style_of_another": summarise(judge, of_another),
        "own_style_below_another_percent": 100 * (1 - _mean_lmd(judge, own) / _mean_lmd(judge, of_another)),
        "silence": quiet(judge, own),
        "sync": judge_sync(sync, own),
        "style_similarity": judge_style(judge, style, examples, own, out),
        "spoken": judge_spoken(judge.encoder, judge.generator, model, examples, runs, out),
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
    (out / "geometry.json").write_text(json.dumps(report, indent=2) + "\n")
    longest = {e.clip.identity: e.clip.name for e in sorted(examples, key=lambda e: len(e.beta))}
    chosen = [_last_seconds(clip) for clip in own if clip.name in longest.values()][:8]
    _plot(judge, chosen, out / "geometry.png")
    return report


def _last_seconds(clip: Judged) -> Judged:
    """The last twelve seconds: more cannot be read in a plot."""
    return replace(clip, true=clip.true[-300:], made=clip.made[-300:])

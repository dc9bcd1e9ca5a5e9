"""Figures of the geometry generator on unseen people: lips driven by speech.

- mouth-opening correlation: Pearson's r of true and predicted height of the inner lips over the frames of one clip, of
  clips of at least two seconds; reported as mean and median over clips, and pooled (all frames of all clips together,
  each clip minus its mean).
- LMD: mean distance of the 40 lip landmarks, frontal view (x, y), in percent of the distance of the outer eye corners.
- gain: 1 - LMD / LMD of a still mouth, the mean of the same clip.
- lag: the delay of the prediction, in frames, at which the correlation peaks, to a tenth of a frame by a parabola
  through the peak; "best lag" is the lag of the mean curve.
- jerk: third difference of the lip landmarks, mean length, against the truth's.
- sync: offset and confidence by `training.evaluate.critics.SyncExpert`, a network trained on the training people: of
  the true lips, of the predicted lips, and of the true lips with the sound of another clip.
- StyleSim (§4.1): cosine of the style vectors (`training.evaluate.critics.StyleExpert`) of a person's true lips and of
  lips predicted with this person's style from the next person's speech, as in dubbing. For comparison: no style, the
  next person's style, two halves of the true clip (the maximum) and two people (chance).

- ceiling: `training.evaluate.ceiling`, on the training people's word clips.

The sound of each clip is first moved by its offset in `runs/offsets.csv`, which models of training people estimated;
the figures "before" leave the sound in place. The style is that of the clip, as in the paper's self-reenactment.
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
from precompute.synchrony import lag_curve, peak
from training.evaluate.ceiling import ceiling
from training.evaluate.critics import STYLE_CROP_FRAMES, StyleExpert, SyncExpert, style_expert, sync_expert
from training.evaluate.spoken import judge_closures
from training.geometry.corpus import Example, Item, load_examples
from training.geometry.generator import predict
from training.geometry.loss import GeometryLoss
from training.geometry.offsets import estimate_offsets
from training.geometry.train import aligned_sound, clip_items

log = logging.getLogger(__name__)

MIN_FRAMES = 50
QUIET_FRAMES = 25  # one second of silence after each clip
CLOSING_FRAMES = 5  # 200 ms
LONG_SILENCE_S = 60


@dataclass(frozen=True)
class Prediction:
    """A clip with true and predicted offsets of the lower face, [T, V_low, 3] each, from `template` [V_low, 3].

    after [25, V_low, 3]: the prediction for the silence that follows; features [T, D]: of the sound.
    """

    name: str
    template: Tensor
    true: Tensor
    predicted: Tensor
    after: Tensor
    features: Tensor


class Predictor:
    """Runs one pair of networks over clips."""

    def __init__(self, encoder: SpeechEncoder, generator: GeometryGenerator, model: MorphableModel) -> None:
        self.encoder, self.generator, self.model = encoder, generator, model
        self.measure = GeometryLoss(model)
        self.lips = torch.isin(generator.lower, torch.tensor([*LIPS_OUTER, *LIPS_INNER]))

    def run(self, example: Example, offset_frames: float, style_beta: Tensor | None) -> Prediction:
        """Sound, moved by the offset and followed by silence, through both networks."""
        frames = len(example.beta)
        sound = aligned_sound(example, offset_frames)
        sound = np.concatenate([sound, np.zeros(RATE_HZ * QUIET_FRAMES // 25, np.float32)])
        features = extract(self.encoder, sound)
        predicted = predict(self.generator, self.model, features, example.alpha, style_beta)
        template = (self.model.mean + self.model.shape(example.alpha))[self.generator.lower]
        true = self.measure.offsets(example.beta)
        return Prediction(example.clip.name, template, true, predicted[:frames], predicted[frames:], features[:frames])

    def openings(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """True and predicted height of the inner lips [T]."""
        return self.measure.opening(prediction.template + prediction.true), self.measure.opening(
            prediction.template + prediction.predicted
        )

    def lmd(self, prediction: Prediction) -> tuple[float, float]:
        """LMD in percent of the interocular distance, of the prediction and of the clip's mean mouth."""
        true, predicted = prediction.true[:, self.lips, :2], prediction.predicted[:, self.lips, :2]
        still = true.mean(0)
        of_prediction, of_still = (
            torch.linalg.vector_norm(true - other, dim=-1).mean() for other in (predicted, still)
        )
        return 100 * float(of_prediction), 100 * float(of_still)


def _mean_lmd(predictor: Predictor, clips: list[Prediction]) -> float:
    return float(np.mean([predictor.lmd(clip)[0] for clip in clips]))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm() + 1e-9))


def summarise(predictor: Predictor, clips: list[Prediction]) -> dict[str, Any]:
    """The figures of the module's docstring over `clips`."""
    openings = [predictor.openings(clip) for clip in clips]
    single = [_correlation(*pair) for pair in openings]
    centred = [torch.cat([pair[side] - pair[side].mean() for pair in openings]) for side in (0, 1)]
    curves = [lag_curve(predicted[:, None], true[:, None]) for true, predicted in openings]
    lags = [peak(curve)[0] for curve in curves]
    jerks = [[_jerk(side[:, predictor.lips]) for side in (clip.predicted, clip.true)] for clip in clips]
    lmd, still = (np.array(values) for values in zip(*[predictor.lmd(clip) for clip in clips], strict=True))
    return {
        "clips": len(clips),
        "correlation_mean": float(np.mean(single)),
        "correlation_median": float(np.median(single)),
        "correlation_pooled": _correlation(*centred),
        "opening_deviation_ratio": float(centred[1].std() / centred[0].std()),
        "lmd_percent": float(lmd.mean()),
        "lmd_mean_mouth_percent": float(still.mean()),
        "lmd_gain_percent": float(100 * (1 - lmd.mean() / still.mean())),
        "best_lag_frames": peak(torch.stack(curves).mean(0))[0],
        "lag_median_frames": float(np.median(np.abs(lags))),
        "jerk_ratio": float(np.median([predicted / true for predicted, true in jerks])),
    }


def _jerk(lips: Tensor) -> float:
    return float(torch.linalg.vector_norm(lips.diff(n=3, dim=0), dim=-1).mean())


def judge_sync(expert: SyncExpert, clips: list[Prediction]) -> dict[str, Any]:
    """Offset and confidence of true lips, of predicted lips, and of true lips with the next clip's sound."""
    judgements: dict[str, list[tuple[int, float]]] = {"true": [], "ours": [], "wrong_sound": []}
    for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
        frames = min(len(clip.true), len(other.features))
        judgements["true"].append(expert.judge(clip.features, clip.true))
        judgements["ours"].append(expert.judge(clip.features, clip.predicted))
        judgements["wrong_sound"].append(expert.judge(other.features[:frames], clip.true[:frames]))
    return {
        which: {
            "within_1_frame": float(np.mean([abs(offset) <= 1 for offset, _ in pairs])),
            "median_abs_offset": float(np.median([abs(offset) for offset, _ in pairs])),
            "confidence": float(np.mean([confidence for _, confidence in pairs])),
        }
        for which, pairs in judgements.items()
    }


def judge_style(
    predictor: Predictor, expert: StyleExpert, examples: list[Example], predictions: list[Prediction], out: Path
) -> dict[str, float]:
    """StyleSim as in the module's docstring; draws `out`/style.png, the t-SNE of true and dubbed stretches."""
    people = {
        example.clip.identity: (example, clip)
        for example, clip in sorted(zip(examples, predictions, strict=True), key=lambda pair: len(pair[0].beta))
    }
    pairs = list(people.values())
    sums: dict[str, list[float]] = defaultdict(list)
    points, colours, dubbed = [], [], []
    with torch.inference_mode():
        for i, (example, clip) in enumerate(pairs):
            other, sound = pairs[(i + 1) % len(pairs)]
            styles = {"own_style": example.beta, "no_style": None, "style_of_another": other.beta}
            true, middle = expert(clip.true[None])[0], len(clip.true) // 2
            for name, style in styles.items():
                lips = predict(predictor.generator, predictor.model, sound.features, example.alpha, style)
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
        x, y = shown.T
        colour = people[dubbed == which]
        axis.scatter(x, y, c=colour, cmap="tab20", marker=marker, label="dubbed" if which else "true")
    axis.legend()
    axis.set_title("style vectors (t-SNE); a colour is a person", fontsize=9)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def quiet(predictor: Predictor, clips: list[Prediction]) -> dict[str, float]:
    """The lips in the silence after speech: their opening in the clip's true range, and their motion."""
    shares, motion = [], []
    for clip in clips:
        true, _ = predictor.openings(clip)
        low, middle = torch.quantile(true, torch.tensor([0.1, 0.5])).tolist()
        after = predictor.measure.opening(clip.template + clip.after)[CLOSING_FRAMES:]
        shares.append(float(after.mean() - low) / max(middle - low, 1e-3))
        step = (clip.after[1:] - clip.after[:-1])[CLOSING_FRAMES:, predictor.lips].square().sum(-1)
        spoken = (clip.predicted[1:] - clip.predicted[:-1])[:, predictor.lips].square().sum(-1)
        motion.append(float(step.mean() / spoken.mean()))
    still = np.zeros(LONG_SILENCE_S * RATE_HZ, np.float32)
    held = predict(
        predictor.generator,
        predictor.model,
        extract(predictor.encoder, still),
        torch.zeros(len(predictor.model.shape_basis)),
        None,
    )
    drift = torch.linalg.vector_norm((held[-1] - held[5 * 25])[predictor.lips], dim=-1).max()
    return {
        "opening_after_200_ms": float(np.median(shares)),  # 0: as closed as the clip's lowest tenth, 1: its median
        "motion_energy_after_200_ms": float(np.median(motion)),  # squared speed, of that while speaking
        "drift_percent_in_60_s": 100 * float(drift),  # of the interocular distance, largest of the lip landmarks
    }


def _plot(predictor: Predictor, clips: list[Prediction], path: Path) -> None:
    """Curves of the mouth's opening, true and predicted, of up to eight clips; silence follows the dotted line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(clips), 1, figsize=(14, 2 * len(clips)), constrained_layout=True, squeeze=False)
    for axis, clip in zip(axes[:, 0], clips, strict=True):
        true, predicted = predictor.openings(clip)
        after = predictor.measure.opening(clip.template + clip.after)
        seconds = np.arange(len(true) + len(after)) / 25
        axis.plot(seconds[: len(true)], true, label="true")
        axis.plot(seconds, torch.cat([predicted, after]), label="from speech")
        axis.axvline(len(true) / 25, linestyle=":", color="black")
        axis.set_title(f"{clip.name}: r = {_correlation(true, predicted):.2f}", fontsize=9)
        axis.set_ylim(0, None)
    axes[0, 0].legend(loc="upper right")
    axes[-1, 0].set_xlabel("s; opening in units of the distance of the outer eye corners")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def evaluate(
    data: Path, runs: Path, out: Path, *, speech: Path | None = None, geometry: Path | None = None
) -> dict[str, Any]:
    """Evaluate weights (the embedded ones by default) on the real validation people.

    Writes `out`/geometry.json with curves in geometry.png, styles in style.png and test sentences in spoken.png, and
    returns the contents of the JSON.
    """
    model, speech = load_face_model(), speech or default_path("speech")
    predictor = Predictor(
        load(SpeechEncoder, SpeechConfig, speech),
        load(GeometryGenerator, GeometryConfig, geometry or default_path("geometry")),
        model,
    )
    offsets = estimate_offsets(data, runs)
    all_examples = load_examples(data, runs)
    examples = [
        e for e in all_examples if e.clip.split == "val" and e.clip.kind == "real" and len(e.beta) >= MIN_FRAMES
    ]
    shift = {e.clip.name: offsets[e.clip.name].frames for e in examples}
    other = {e.clip.name: next(o for o in examples[i:] + examples if o.clip.identity != e.clip.identity).beta
             for i, e in enumerate(examples)}  # fmt: skip
    own = [predictor.run(e, shift[e.clip.name], e.beta) for e in examples]
    locked = [clip for clip in own if offsets[clip.name].locked]
    items = clip_items(runs, speech, all_examples, offsets, model)
    sync = sync_expert(items, predictor.measure, predictor.lips, runs / "geometry" / f"sync-{fingerprint(speech)}.pt")
    style = style_expert(all_examples, predictor.measure, runs / "geometry" / "style.pt")
    out.mkdir(parents=True, exist_ok=True)
    no_style = [predictor.run(e, shift[e.clip.name], None) for e in examples]
    of_another = [predictor.run(e, shift[e.clip.name], other[e.clip.name]) for e in examples]
    report = {
        "people": len({e.clip.identity for e in examples}),
        "after_offset_correction": summarise(predictor, own),
        "locked_clips_only": summarise(predictor, locked),
        "before_offset_correction": summarise(predictor, [predictor.run(e, 0.0, e.beta) for e in examples]),
        "no_style": summarise(predictor, no_style),
        "style_of_another": summarise(predictor, of_another),
        "own_style_below_another_percent": 100 * (1 - _mean_lmd(predictor, own) / _mean_lmd(predictor, of_another)),
        "silence": quiet(predictor, own),
        "sync": judge_sync(sync, own),
        "style_similarity": judge_style(predictor, style, examples, own, out),
        "spoken": judge_closures(predictor.encoder, predictor.generator, model, examples, runs, out),
        "ceiling": ceiling(_words(all_examples, items, predictor)),
        "each": {
            clip.name: {
                "correlation": round(_correlation(*predictor.openings(clip)), 3),
                "lmd_percent": round(predictor.lmd(clip)[0], 2),
                "lmd_mean_mouth_percent": round(predictor.lmd(clip)[1], 2),
                "offset_frames": shift[clip.name],
                "match": offsets[clip.name].match,
            }
            for clip in own
        },
    }
    (out / "geometry.json").write_text(json.dumps(report, indent=2) + "\n")
    longest = {e.clip.identity: e.clip.name for e in sorted(examples, key=lambda e: len(e.beta))}
    chosen = [_last_seconds(clip) for clip in own if clip.name in longest.values()][:8]
    _plot(predictor, chosen, out / "geometry.png")
    return report


def _words(examples: list[Example], items: list[Item], predictor: Predictor) -> list[tuple[str, Tensor, Tensor]]:
    """Identity, features [T, D] and opening [T] of the recorded training clips, where the target is known."""
    words = []
    for item in items:
        example, known = examples[item.example], item.known > 0
        if example.clip.kind == "real":
            template = (predictor.model.mean + predictor.model.shape(example.alpha))[predictor.generator.lower]
            opening = predictor.measure.opening(template + predictor.measure.offsets(item.beta[known]))
            words.append((example.clip.identity, item.features[known], opening))
    return words


def _last_seconds(clip: Prediction) -> Prediction:
    """The last twelve seconds; a longer plot would not be readable."""
    return replace(clip, true=clip.true[-300:], predicted=clip.predicted[-300:])

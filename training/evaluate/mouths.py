"""Mouths that people believe: the figures that viewers' votes follow, on unseen people and always across halves.

A person is enrolled on one half of a clip (style and persona) and judged on the other, both ways. `ours`: own style and
persona; `plain`: own style, no persona; `another`: own style, the persona of the next person; `mean`: the mean mouth of
the enrolled half, held still. `halves` is the truth: the enrolled half's lips against the judged half's.

- open: mean opening of the inner lips against the truth's; open_error: mean |log| of it.
- deviation, jerk: of the lip landmarks, against the truth's.
- shape: Fréchet distance of lip shapes (`training.evaluate.lips.shape_distance`) to the judged half's.
- mtm_ms: misalignment of the extrema of the opening; correlation: of the opening.
- loudness: correlation of sound level and lip speed over seconds, and the truth's own.
- leak: share of the frames, from 200 ms after the sound's end on, in which lips that are closed without the persona are
  open with it; quiet: opening then, in the truth's range from its lowest tenth (0) to its median (1).
- voices: lips for the sound of other people, against the judged half: open, shape.
- style: cosine of StyleExpert's vectors, of lips for another person's sound and the judged half.

`spoken`: closures of Kokoro's test sentences (`training.evaluate.spoken`). `pictures`: what the renderer makes of it
(`training.evaluate.textures`).

Figures are means over halves; `long` are halves of ten seconds and more. Offsets are those of `runs/offsets.csv`;
halves whose offset is not locked, or shorter than MIN_FRAMES, are left out.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track as progress
from torch import Tensor

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.persona import PersonaMap, no_persona
from engine.models.speech import SpeechConfig, SpeechEncoder
from engine.models.weights import default_path, load, load_face_model
from training.evaluate import lips as measures
from training.evaluate.critics import StyleExpert, style_expert
from training.evaluate.halves import QUIET_FRAMES, Half, Judge, Sound, halves_of
from training.evaluate.lip_sheet import draw_curves, draw_personas
from training.evaluate.spoken import judge_closures
from training.evaluate.textures import pictures
from training.geometry.corpus import Example, load_examples
from training.geometry.loss import GeometryLoss
from training.geometry.offsets import estimate_offsets

log = logging.getLogger(__name__)

OTHER_VOICES = 3


def evaluate(
    data: Path, runs: Path, out: Path, *, speech: Path | None = None, geometry: Path | None = None
) -> dict[str, Any]:
    """The figures of the module's docstring with these weights (default: the embedded ones).

    Writes `out`/mouths.json, the curves of openings in `out`/mouths.png, and for every person the lips with the own and
    another persona in `out`/persona-IDENTITY.png and painted mouths in `out`/mouth-IDENTITY.png.
    """
    model = load_face_model()
    judge = Judge(
        load(SpeechEncoder, SpeechConfig, speech or default_path("speech")),
        load(GeometryGenerator, GeometryConfig, geometry or default_path("geometry")),
        model,
    )
    offsets = estimate_offsets(data, runs)
    examples = load_examples(data, runs)
    expert = style_expert(examples, GeometryLoss(model), runs / "geometry" / "style.pt")
    chosen = [e for e in examples if e.clip.split == "val" and e.clip.kind != "generated" and halves_of(e)]
    chosen = [e for e in chosen if offsets[e.clip.name].locked]
    sounds = [judge.hear(e, offsets[e.clip.name].frames) for e in progress(chosen, "features")]
    halves = [(judge.enrol(sound, *pair), sound) for sound in sounds for pair in halves_of(sound.example)]
    rows = [_row(judge, expert, halves, i) for i in progress(range(len(halves)), "halves")]
    out.mkdir(parents=True, exist_ok=True)
    report = _report([half for half, _ in halves], rows) | {"spoken": _spoken(judge, halves, runs, out)}
    report["pictures"] = pictures(data, runs, out)
    (out / "mouths.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_curves(judge, halves, out / "mouths.png")
    draw_personas(judge, halves, out)
    return report


def _spoken(judge: Judge, halves: list[tuple[Half, Sound]], runs: Path, out: Path) -> dict[str, Any]:
    """Closures and open vowels of test sentences, with and without the personas of long halves."""
    people = {half.example.clip.identity: half for half, _ in halves if half.long}
    maps = {
        half.example.clip.name: PersonaMap(judge.space, half.persona.change, judge.template(half.example), half.rest)
        for half in people.values()
    }

    def own(example: Example, vertices: Tensor) -> Tensor:
        return maps[example.clip.name](vertices)

    faces = [half.example for half in people.values()]
    parts = judge.encoder, judge.generator, judge.model, faces, runs, out
    return {"plain": judge_closures(*parts), "ours": judge_closures(*parts, own)}


def _others(halves: list[tuple[Half, Sound]], which: int) -> list[tuple[Half, Sound]]:
    """The halves of other people, beginning with those that follow, one of each person."""
    own = halves[which][0].example.clip.identity
    people = {half.example.clip.identity: (half, sound) for half, sound in halves[which:] + halves[:which]}
    return [pair for identity, pair in people.items() if identity != own]


def _row(
    judge: Judge, expert: StyleExpert, halves: list[tuple[Half, Sound]], which: int
) -> dict[str, dict[str, float]]:
    """The figures of one half by variant."""
    half, sound = halves[which]
    others = _others(halves, which)
    personas = {"ours": half.persona.change, "plain": no_persona(), "another": others[0][0].persona.change}
    spoken = {name: judge.speak(half, sound, persona) for name, persona in personas.items()}
    true = judge.truth(half.example.beta)
    still = true[half.enrolled].mean(0).expand(len(true) + QUIET_FRAMES, -1, -1)
    row = {name: judge.measure(half, sound, lips) for name, lips in (spoken | {"mean": still}).items()}
    with torch.inference_mode():
        own = expert(true[None, half.judged])[0]
        row["halves"] = {
            "shape": measures.shape_distance(
                *(true[part][:, judge.space.lips] for part in (half.enrolled, half.judged))
            ),
            "style": float(expert(true[None, half.enrolled])[0] @ own),
        }
        for name, persona in personas.items():
            row[name] |= judge.silence(half, spoken["plain"], spoken[name])
            figures, lips = judge.voices(half, [other for _, other in others[:OTHER_VOICES]], persona)
            row[name] |= figures | {"style": float(expert(lips[None])[0] @ own)}
    return row


def _report(halves: list[Half], rows: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    groups = {
        "all": range(len(halves)),
        "long": [i for i, half in enumerate(halves) if half.long],
        "long_clips": [i for i, half in enumerate(halves) if half.long and half.example.clip.kind == "real"],
        "long_fits": [i for i, half in enumerate(halves) if half.long and half.example.clip.kind == "fitted"],
    }
    report: dict[str, Any] = {}
    for group, members in groups.items():
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for i in members:
            for variant, figures in rows[i].items():
                for name, value in figures.items():
                    values[variant][name].append(value)
        report[group] = {
            "halves": len(members),
            "people": len({halves[i].example.clip.identity for i in members}),
            **{v: {n: round(float(np.mean(x)), 4) for n, x in figures.items()} for v, figures in values.items()},
        }
    report["each"] = {
        half.name: {"match": round(half.persona.match, 3), "left_out": half.persona.reason}
        | {variant: {n: round(x, 3) for n, x in row[variant].items()} for variant in ("ours", "plain", "halves")}
        for half, row in zip(halves, rows, strict=True)
    }
    return report

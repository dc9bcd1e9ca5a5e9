"""The report of a dub: as data for programs, and as one HTML page for people."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from engine.files import replaced
from precompute.dubbing.cast import Part
from precompute.dubbing.faces import Faces
from precompute.dubbing.mouths import stretches
from precompute.dubbing.people import Person
from precompute.dubbing.source import Remark
from precompute.dubbing.timing import Plan

SHOWN_PAIRS = 8  # of each person, before and after
PAIR_PX, PORTRAIT_PX, JPEG_QUALITY = 200, 200, 88
SHOWN_STRETCHES = 40
KEPT_TEXTS = {
    "turned": "the face is turned away too far",
    "small": "the face is too small",
    "unsure": "the face cannot be measured surely",
    "covered": "an object covers the mouth",
    "passage": "outside the passage, or another face speaks",
    "at rest": "there is nothing to say and nothing to close",
}

Saw = Callable[[np.ndarray, np.ndarray], None]
"""Takes the square around a face [S, S, 3] uint8, before and after it was painted."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """One person. seconds: in the picture.  speaks: the keys of the speeches that this face was given.  changed:
    pictures of the output with a new mouth."""

    number: int
    seconds: float
    speaks: list[str]
    changed: int


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A shot of the source. kept: pictures of the output in which a face that speaks keeps its own mouth, by reason."""

    from_s: float
    to_s: float
    faces: list[int]
    changed: int
    kept: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A stretch of the output in which a face that speaks keeps its own mouth."""

    face: int
    from_s: float
    to_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """pictures: of the output.  changed: those with a new mouth; closed: those in which it only closes, because the
    original speaks and the new speech is silent.  spent_s: seconds in each stage, and of threads in decoding, painting
    and encoding."""

    output: str
    seconds: float
    pictures: int
    changed: int
    closed: int
    faces: list[Face]
    shots: list[Shot]
    kept: list[Kept]
    remarks: list[dict[str, Any]]
    spent_s: dict[str, float]

    @classmethod
    def of(
        cls,
        output: Path,
        faces: Faces,
        plan: Plan,
        people: Sequence[Person],
        parts: Sequence[Part],
        remarks: Sequence[Remark],
        spent_s: dict[str, float],
    ) -> Report:
        changed, closed = np.zeros((2, len(plan)), bool)
        by_face: dict[int, np.ndarray] = {}
        for one in parts:
            own = by_face.setdefault(one.person.number, np.zeros(len(plan), bool))
            for passage in one.passages:
                places = slice(passage.first, passage.first + len(passage.t))
                own[places] |= passage.change.pixels > 0
                closed[places] |= passage.change.closes
            changed |= own
        return cls(
            output=str(output),
            seconds=round(float(plan.duration_s), 3),
            pictures=len(plan),
            changed=int(changed.sum()),
            closed=int(closed.sum()),
            faces=[
                Face(
                    number=person.number,
                    seconds=round(person.pictures / faces.rate_hz, 2),
                    speaks=[one.speech for one in parts if one.person is person],
                    changed=int(by_face[person.number].sum()) if person.number in by_face else 0,
                )
                for person in people
            ],
            shots=_shots(faces, plan, people, parts, changed),
            kept=_kept(faces, plan, parts),
            remarks=[asdict(remark) for remark in remarks],
            spent_s=spent_s,
        )

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _shots(
    faces: Faces, plan: Plan, people: Sequence[Person], parts: Sequence[Part], changed: np.ndarray
) -> list[Shot]:
    edges = [float(tick * faces.times.time_base) for tick in [*faces.times.ticks.tolist(), faces.times.end]]
    shots = []
    for number, shot in enumerate(faces.shots):
        reasons: Counter[str] = Counter()
        for one in parts:
            for passage in one.passages:
                if one.person.runs[passage.run].shot == number:
                    reasons.update(reason for reason in passage.change.kept.tolist() if reason)
        inside = (plan.sources >= shot.start) & (plan.sources < shot.stop)
        shots.append(
            Shot(
                from_s=round(edges[shot.start], 3),
                to_s=round(edges[shot.stop], 3),
                faces=[p.number for p in people if any(run.shot == number for run in p.runs)],
                changed=int((changed & inside).sum()),
                kept=dict(reasons),
            )
        )
    return shots


def _kept(faces: Faces, plan: Plan, parts: Sequence[Part]) -> list[Kept]:
    times, durations = plan.seconds()
    found = []
    for one in parts:
        for passage in one.passages:
            for first, last, reason in stretches(passage.change.kept.tolist(), passage.first):
                if reason not in ("", "passage", "at rest"):
                    end_s = float(times[last - 1] + durations[last - 1])
                    found.append(
                        Kept(
                            face=one.person.number,
                            from_s=round(float(times[first]), 3),
                            to_s=round(end_s, 3),
                            reason=reason,
                        )
                    )
    return sorted(found, key=lambda kept: kept.from_s)


class Samples:
    """Pairs of a face before and after, a few of each person, for the page."""

    def __init__(self, plan: Plan, parts: Sequence[Part]):
        self._plan = plan
        self.pairs: dict[int, dict[int, tuple[bytes, bytes]]] = {one.person.number: {} for one in parts}
        self._wanted: set[tuple[int, int]] = set()
        for one in parts:
            changed = [
                passage.first + int(i) for passage in one.passages for i in np.flatnonzero(passage.change.pixels >= 1)
            ]
            picks = np.linspace(0, len(changed) - 1, min(SHOWN_PAIRS, len(changed)) + 2)[1:-1].round().astype(int)
            self._wanted |= {(changed[i], one.person.number) for i in picks}

    def wanted(self, k: int, number: int) -> Saw | None:
        """Takes the pair of picture k and this person, if the page shows it."""
        if (k, number) not in self._wanted:
            return None

        def saw(before: np.ndarray, after: np.ndarray) -> None:
            self.pairs[number][k] = _jpeg(before, PAIR_PX), _jpeg(after, PAIR_PX)

        return saw


def write_report(path: Path, report: Report, portraits: Mapping[int, np.ndarray], samples: Samples) -> None:
    """Write the page. portraits: the square around each face [S, S, 3] uint8, by its number. Raises OutputError."""
    facts = {
        "video": f"{report.seconds:.2f} s, {report.pictures} pictures",
        "new mouths": f"{report.changed} pictures, {100 * report.changed / max(1, report.pictures):.0f} %",
        "mouths closed": f"{report.closed} pictures, where the original speaks and the new speech is silent",
    }
    page = Template(files("precompute.dubbing").joinpath("report.html").read_text("utf-8")).substitute(
        name=escape(Path(report.output).name),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
        remarks="".join(f"<li>{escape(remark['text'])}{_at(remark['at_s'])}</li>" for remark in report.remarks),
        faces="".join(_face(face, portraits) for face in report.faces),
        pairs="".join(_pairs(number, pairs) for number, pairs in samples.pairs.items()),
        shots="".join(_row(number, shot) for number, shot in enumerate(report.shots, 1)),
        kept="".join(
            f"<li>face {k.face}, {k.from_s:.2f} to {k.to_s:.2f} s: {KEPT_TEXTS[k.reason]}</li>"
            for k in report.kept[:SHOWN_STRETCHES]
        )
        or "<li>none</li>",
    )
    with replaced(path) as temporary:
        temporary.write_text(page, "utf-8")


def _face(face: Face, portraits: Mapping[int, np.ndarray]) -> str:
    picture = _image(_jpeg(portraits[face.number], PORTRAIT_PX), f"face {face.number}")
    role = f"speaks, {face.changed} pictures" if face.speaks else "is not changed"
    return f"<figure>{picture}<figcaption><b>{face.number}</b> {role}<br>{face.seconds:.1f} s</figcaption></figure>"


def _pairs(number: int, pairs: Mapping[int, tuple[bytes, bytes]]) -> str:
    shown = "".join(
        f"<figure>{_image(before, 'before')}{_image(after, 'after')}</figure>"
        for _, (before, after) in sorted(pairs.items())
    )
    return f"<h3>Face {number}</h3><div class=pairs>{shown}</div>"


def _row(number: int, shot: Shot) -> str:
    kept = ", ".join(f"{reason} {count}" for reason, count in shot.kept.items())
    faces = ", ".join(map(str, shot.faces)) or "none"
    cells = (number, f"{shot.from_s:.2f}", f"{shot.to_s:.2f}", faces, shot.changed, kept)
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _at(seconds: float | None) -> str:
    return "" if seconds is None else f" (at {seconds:.2f} s)"


def _jpeg(image: np.ndarray, side: int) -> bytes:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _image(jpeg: bytes, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'

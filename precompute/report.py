"""The enrolment report: one HTML page without external parts, for the person who filmed the clip.

The page is `report.html` of this package, a `string.Template`; this module fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template

import cv2
import numpy as np
from torch import Tensor

from engine.avatar.manifest import Manifest
from engine.media import FPS
from engine.models.morphable import FACE_OVAL, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE
from engine.paint.composite import cut
from precompute.assessment import Assessment
from precompute.charts import curves, histogram, picture, timeline
from precompute.fit import to_crop
from precompute.person import Person
from precompute.scan import Scan
from precompute.video import VideoInfo

Read = Callable[[int], np.ndarray]
"""Frame number -> frame [H, W, 3] uint8 RGB."""

SHOWN_FRAMES = 4
FIGURE_PX, REFERENCE_PX, PORTRAIT_PX = 300, 116, 416


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The contents of the report."""

    manifest: Manifest
    info: VideoInfo
    scan: Scan
    assessment: Assessment
    person: Person


def render_report(data: ReportData, references: dict[str, Tensor], base: Read, idle: Read) -> str:
    """The page. `references`: the members of bank.safetensors; `base` and `idle` read frames of the two videos."""
    manifest, assessment, person = data.manifest, data.assessment, data.person
    badge_class, badge = _badge(assessment)
    marks = person.opening[references["frames"].numpy()]
    frames = _frames_by_opening(person)
    return Template(files("precompute").joinpath("report.html").read_text("utf-8")).substitute(
        name=escape(manifest.name),
        portrait=_portrait(base(manifest.loop.start), manifest.name),
        frames=manifest.frames,
        badge_class=badge_class,
        badge=badge,
        tiles=_tiles(manifest),
        remarks=_remarks(assessment),
        clip_timeline=_clip_timeline(data),
        tracked_frames="".join(_tracked_frame(data, n, base(n)) for n in frames),
        idle_frames="".join(_idle_frame(data, n, idle(n)) for n in frames),
        error_curves=_curves(
            data, [("whole face", person.fit.error_px), ("lips", person.fit.lip_error_px)], "error", low=0
        ),
        yaw_curve=_curves(data, [("yaw", assessment.yaw_deg)], "yaw", low=-20, high=20),
        opening_histogram=histogram(person.opening, marks, title="mouth opening"),
        sharpness_curve=_curves(data, [("sharpness", data.scan.sharpness[assessment.use])], "sharpness", low=0),
        lip_references=_lip_references(person, references),
        facts=_facts(manifest, data.info),
    )


def _badge(assessment: Assessment) -> tuple[str, str]:
    """Class and text of the badge beside the name."""
    count = sum(remark.code != "part" for remark in assessment.remarks)
    return ("fair", f"usable, {count} remark{'s' * (count > 1)}") if count else ("good", "good material")


def _portrait(image: np.ndarray, name: str) -> str:
    size = (PORTRAIT_PX, round(PORTRAIT_PX * image.shape[0] / image.shape[1]))
    return picture(cv2.resize(image, size, interpolation=cv2.INTER_AREA), alt=name)


def _tiles(manifest: Manifest) -> str:
    figures = manifest.summary
    left, right = figures["yaw_deg"]
    tiles = [
        (f"{figures['used_s']:.1f} s", f"used of {figures['clip_s']:.1f} s"),
        (f"{manifest.width}×{manifest.height}", "base video at 25 fps"),
        (f"{figures['face_px']} px", "face, forehead to chin"),
        (f"{figures['error_px']:.2f} px", "landmark error (256 px crop)"),
        (f"{figures['lip_error_px']:.2f} px", "landmark error of the lips"),
        (f"{left:.0f}° … {right:.0f}°", "head turned left and right"),
        (f"{figures['sharpness']:.0f}", "sharpness of the face"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in tiles)


def _remarks(assessment: Assessment) -> str:
    if not assessment.remarks:
        return '<li class="fine">No remarks: size, light, sharpness and length are good.</li>'
    texts = (remark.text[:1].upper() + remark.text[1:] for remark in assessment.remarks)
    return "".join(f"<li>{escape(text)}.</li>" for text in texts)


def _clip_timeline(data: ReportData) -> str:
    assessment, loop = data.assessment, data.manifest.loop
    first = assessment.use.start
    spans = [
        *(("shot", shot.start / FPS, shot.stop / FPS, "shots") for shot in assessment.shots),
        ("use", first / FPS, assessment.use.stop / FPS, "used"),
        ("loop", (first + loop.start) / FPS, (first + loop.stop) / FPS, "loop"),
        *_problem_spans(assessment),
    ]
    return timeline(spans, max(0.04, len(data.scan) / FPS))


def _problem_spans(assessment: Assessment) -> list[tuple[str, float, float, str]]:
    spans, start = [], 0
    for code, group in groupby(assessment.problem):
        stop = start + len(list(group))
        if code:
            spans.append(("trouble", start / FPS, stop / FPS, str(code)))
        start = stop
    return spans


def _curves(
    data: ReportData, lines: list[tuple[str, np.ndarray]], title: str, low: float, high: float | None = None
) -> str:
    """Curves over the used stretch, in seconds of the clip."""
    return curves(lines, start_s=data.assessment.use.start / FPS, fps=FPS, title=title, low=low, high=high)


def _frames_by_opening(person: Person) -> list[int]:
    """SHOWN_FRAMES frames of the base video, spread evenly over the mouth openings."""
    order = np.argsort(person.opening, kind="stable")
    ranks = np.rint(np.linspace(0.02, 0.98, SHOWN_FRAMES) * (len(order) - 1)).astype(int)
    return [int(n) for n in order[ranks]]


def _tracked_frame(data: ReportData, n: int, image: np.ndarray) -> str:
    return _figure(_with_landmarks(image, data.person.fit.crop[n], data.person.landmarks[n]), _time(data, n))


def _idle_frame(data: ReportData, n: int, image: np.ndarray) -> str:
    crop = cut(image, data.person.fit.crop[n])
    return _figure(cv2.resize(crop, (FIGURE_PX, FIGURE_PX), interpolation=cv2.INTER_CUBIC), _time(data, n))


def _time(data: ReportData, n: int) -> str:
    """The time in the clip of frame n of the base video."""
    return f"{(data.assessment.use.start + n) / FPS:.2f} s"


def _figure(image: np.ndarray, caption: str) -> str:
    return f"<figure>{picture(image, alt=caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _with_landmarks(image: np.ndarray, crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The crop of a base frame with all landmarks [478, 3] (frame pixels) and the contours of eyes, lips and face."""
    view = np.ascontiguousarray(cv2.resize(cut(image, crop), (512, 512), interpolation=cv2.INTER_CUBIC))
    points = np.rint(to_crop(landmarks[None], crop[None])[0, :, :2] * 2 * 16).astype(np.int32)
    for x, y in points:
        cv2.circle(view, (int(x), int(y)), 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
    contours = [points[list(loop)] for loop in (FACE_OVAL, RIGHT_EYE, LEFT_EYE)]
    cv2.polylines(view, contours, True, (45, 212, 191), 1, cv2.LINE_AA, shift=4)
    lips = [points[list(loop)] for loop in (LIPS_OUTER, LIPS_INNER)]
    cv2.polylines(view, lips, True, (251, 146, 60), 2, cv2.LINE_AA, shift=4)
    return cv2.resize(view, (FIGURE_PX, FIGURE_PX), interpolation=cv2.INTER_AREA)


def _lip_references(person: Person, references: dict[str, Tensor]) -> str:
    crops, frames = references["crops"].numpy(), references["frames"].tolist()
    eighth = crops.shape[1] // 8
    lower = np.s_[3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]
    return "".join(
        _figure(cv2.resize(crop[lower], (REFERENCE_PX, REFERENCE_PX)), f"{person.opening[frame]:.3f}")
        for crop, frame in zip(crops, frames, strict=True)
    )


def _facts(manifest: Manifest, info: VideoInfo) -> str:
    loop = manifest.loop
    joint = "jumps back at a matched joint" if loop.mode == "wrap" else "turns round at both ends"
    size = f"{info.width}×{info.height}"
    return _rows([
        ("source", f"{size}, {info.source_fps:.3g} fps, {info.codec}, sha256 {manifest.source_sha256}"),
        ("loop", f"{(loop.stop - loop.start) / FPS:.2f} s, {joint}"),
        ("consent", manifest.consent),
        ("created", manifest.created),
        ("weights", ", ".join(f"{name} {fingerprint}" for name, fingerprint in manifest.networks.items())),
    ])  # fmt: skip


def _rows(facts: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)

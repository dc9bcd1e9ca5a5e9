"""The quality report: one HTML page without outside parts, for the person who filmed the clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import groupby

import cv2
import numpy as np
from torch import Tensor

from engine.avatar.manifest import Manifest
from engine.media import FPS
from engine.models.morphable import FACE_OVAL, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE
from engine.paint.composite import cut
from precompute.charts import curves, histogram, picture, timeline
from precompute.fit import FaceFit, to_crop
from precompute.quality import Verdict
from precompute.scan import Scan
from precompute.video import VideoInfo

Read = Callable[[int], np.ndarray]
SHOWN_FRAMES = 4
REFERENCE_PX = 116


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the report shows. `landmarks` [n, 478, 3] and `opening` [n] belong to the n frames of the base video."""

    manifest: Manifest
    info: VideoInfo
    seen: Scan
    verdict: Verdict
    fit: FaceFit
    landmarks: np.ndarray
    opening: np.ndarray


STYLE = """
:root{color-scheme:light dark;--ink:#17202a;--dim:#66727f;--paper:#f6f7f9;--card:#fff;--line:#e3e7ec;--c0:#0f766e;
--c1:#d9560b;--good:#0f766e;--fair:#b45309;--bad:#c2410c;--soft:#cfe7e4}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf2;--dim:#93a0ad;--paper:#10151b;--card:#19212a;--line:#2a343f;
--c0:#2dd4bf;--c1:#fb923c;--good:#2dd4bf;--fair:#fbbf24;--bad:#fb923c;--soft:#1d4a47}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
header{display:flex;gap:24px;align-items:center;flex-wrap:wrap;margin-bottom:24px}
header img{width:208px;border-radius:14px;display:block}h1{font-size:30px;line-height:1.2;margin:0 0 4px}
h2{font-size:16px;margin:0 0 12px}p{margin:0}.dim{color:var(--dim)}
.badge{display:inline-block;margin-top:10px;padding:3px 12px;border-radius:99px;font-weight:600;font-size:14px;
color:var(--card)}.badge.good{background:var(--good)}.badge.fair{background:var(--fair)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(124px,1fr));gap:12px;margin-bottom:16px}
.tile,section{background:var(--card);border:1px solid var(--line);border-radius:14px}
.tile{padding:12px 14px}.tile b{display:block;font-size:20px;white-space:nowrap;line-height:1.4;
font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:13px}section{padding:18px 20px;margin-bottom:16px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px}@media(max-width:820px){.pair{grid-template-columns:1fr}}
.pair section{margin:0}.pair{margin-bottom:16px}
ul{list-style:none;margin:0;padding:0}li{padding:8px 0 8px 26px;position:relative;border-top:1px solid var(--line)}
li:first-child{border:0}li::before{content:"";position:absolute;left:4px;top:15px;width:9px;height:9px;
border-radius:50%;background:var(--fair)}li.fine::before{background:var(--good)}
svg{width:100%;display:block}.grid{stroke:var(--line)}.tick{fill:var(--dim);font:11px system-ui,sans-serif}
path{fill:none;stroke-width:1.6;stroke-linejoin:round}path.c0{stroke:var(--c0)}path.c1{stroke:var(--c1)}
.bar{fill:var(--c0);opacity:.75}.mark{stroke:var(--c1);stroke-width:1.5}.lane{fill:var(--line);opacity:.55}
.shot{fill:var(--soft)}.use{fill:var(--c0)}.loop{fill:var(--c0);opacity:.6}.trouble{fill:var(--c1)}
.legend{display:flex;gap:18px;font-size:13px;color:var(--dim);margin-top:6px}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:7px;vertical-align:middle}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}
.row{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}.sheet{display:grid;gap:6px;
grid-template-columns:repeat(auto-fill,minmax(88px,1fr))}figure{margin:0}figure img{width:100%;border-radius:8px;
display:block}figcaption{font-size:12px;color:var(--dim);text-align:center;padding-top:2px;
font-variant-numeric:tabular-nums}.note{color:var(--dim);font-size:13px;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:14px}td{padding:5px 0;border-top:1px solid var(--line);
vertical-align:top;overflow-wrap:anywhere}tr:first-child td{border:0}td:first-child{color:var(--dim);width:150px}
"""


def _section(title: str, body: str, note: str = "") -> str:
    below = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{below}</section>"


def _figure(image: np.ndarray, caption: str) -> str:
    return f"<figure>{picture(image, alt=caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _drawn(image: np.ndarray, crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The crop of a base frame with all landmarks [478, 3] (frame pixels) and the contours of eyes, lips and face."""
    view = np.ascontiguousarray(cv2.resize(cut(image, crop), (512, 512), interpolation=cv2.INTER_CUBIC))
    points = np.rint(to_crop(landmarks[None], crop[None])[0, :, :2] * 2 * 16).astype(np.int32)
    for x, y in points:
        cv2.circle(view, (int(x), int(y)), 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
    contours = [points[list(loop)] for loop in (FACE_OVAL, RIGHT_EYE, LEFT_EYE)]
    cv2.polylines(view, contours, True, (45, 212, 191), 1, cv2.LINE_AA, shift=4)
    lips = [points[list(loop)] for loop in (LIPS_OUTER, LIPS_INNER)]
    cv2.polylines(view, lips, True, (251, 146, 60), 2, cv2.LINE_AA, shift=4)
    return cv2.resize(view, (300, 300), interpolation=cv2.INTER_AREA)


def _problem_spans(verdict: Verdict) -> list[tuple[str, float, float, str]]:
    spans, place = [], 0
    for code, group in groupby(verdict.problem):
        length = len(list(group))
        if code:
            spans.append(("trouble", place / FPS, (place + length) / FPS, str(code)))
        place += length
    return spans


def _clip_timeline(evidence: Evidence) -> str:
    verdict, loop = evidence.verdict, evidence.manifest.loop
    first = verdict.use.start
    spans = [
        *(("shot", shot.start / FPS, shot.stop / FPS, "shots") for shot in verdict.shots),
        ("use", first / FPS, verdict.use.stop / FPS, "used"),
        ("loop", (first + loop.start) / FPS, (first + loop.stop) / FPS, "loop"),
        *_problem_spans(verdict),
    ]
    return timeline(spans, max(0.04, len(evidence.seen) / FPS))


def _tiles(evidence: Evidence) -> str:
    quality, manifest = evidence.manifest.summary, evidence.manifest
    low, high = quality["yaw_deg"]
    tiles = [
        (f"{quality['used_s']:.1f} s", f"used of {quality['clip_s']:.1f} s"),
        (f"{manifest.width}×{manifest.height}", "base video at 25 fps"),
        (f"{quality['face_px']} px", "face, forehead to chin"),
        (f"{quality['error_px']:.2f} px", "landmark error (256 px crop)"),
        (f"{quality['lip_error_px']:.2f} px", "landmark error of the lips"),
        (f"{low:.0f}° … {high:.0f}°", "head turned left and right"),
        (f"{quality['sharpness']:.0f}", "sharpness of the face"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in tiles)


def _remarks(evidence: Evidence) -> str:
    remarks = evidence.verdict.remarks
    if not remarks:
        return '<ul><li class="fine">Nothing to complain about: size, light, sharpness and length are good.</li></ul>'
    return (
        "<ul>"
        + "".join(f"<li>{escape(remark.text[:1].upper() + remark.text[1:])}.</li>" for remark in remarks)
        + "</ul>"
    )


def _pictures(evidence: Evidence, read: Read, idle: Read) -> tuple[str, str]:
    """Frames with their landmarks, spread over mouth openings, and the same frames as they idle."""
    order = np.argsort(evidence.opening, kind="stable")
    chosen = order[np.rint(np.linspace(0.02, 0.98, SHOWN_FRAMES) * (len(order) - 1)).astype(int)]
    drawn, resting = "", ""
    for n in (int(index) for index in chosen):
        at = f"{(evidence.verdict.use.start + n) / FPS:.2f} s"
        drawn += _figure(_drawn(read(n), evidence.fit.crop[n], evidence.landmarks[n]), at)
        resting += _figure(
            cv2.resize(cut(idle(n), evidence.fit.crop[n]), (300, 300), interpolation=cv2.INTER_CUBIC), at
        )
    return f'<div class="row">{drawn}</div>', f'<div class="row">{resting}</div>'


def _contact_sheet(evidence: Evidence, references: dict[str, Tensor]) -> str:
    crops, frames = references["crops"].numpy(), references["frames"].tolist()
    eighth = crops.shape[1] // 8
    lower = np.s_[3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]
    figures = [
        _figure(cv2.resize(crop[lower], (REFERENCE_PX, REFERENCE_PX)), f"{evidence.opening[frame]:.3f}")
        for crop, frame in zip(crops, frames, strict=True)
    ]
    return f'<div class="sheet">{"".join(figures)}</div>'


def _facts(evidence: Evidence) -> str:
    manifest, info = evidence.manifest, evidence.info
    loop = manifest.loop
    joint = "jumps back at a matched joint" if loop.mode == "wrap" else "turns round at both ends"
    facts = [
        (
            "source",
            f"{info.width}×{info.height}, {info.source_fps:.3g} fps, {info.codec}, sha256 {manifest.source_sha256}",
        ),
        ("loop", f"{(loop.stop - loop.start) / FPS:.2f} s, {joint}"),
        ("consent", manifest.consent),
        ("made", manifest.created),
        ("weights", ", ".join(f"{name} {print_}" for name, print_ in manifest.networks.items())),
    ]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def render_report(evidence: Evidence, references: dict[str, Tensor], read: Read, idle: Read) -> str:
    """The page. `references` are the members of bank.safetensors; read(i) and idle(i) are frame i of the base and of
    the idle video, [H, W, 3] uint8."""
    verdict, fit, manifest = evidence.verdict, evidence.fit, evidence.manifest
    start_s = verdict.use.start / FPS
    drawn, resting = _pictures(evidence, read, idle)
    serious = [remark for remark in verdict.remarks if remark.code != "part"]
    badge = (
        ("fair", f"usable, {len(serious)} remark{'s' * (len(serious) > 1)}") if serious else ("good", "good material")
    )
    marks = evidence.opening[references["frames"].numpy()]
    errors = curves(
        [("whole face", fit.error_px), ("lips", fit.lip_error_px)], start_s=start_s, fps=FPS, title="error", low=0
    )
    head = curves([("yaw", verdict.yaw_deg)], start_s=start_s, fps=FPS, title="yaw", low=-20, high=20)
    sharp = curves(
        [("sharpness", evidence.seen.sharpness[verdict.use])], start_s=start_s, fps=FPS, title="sharpness", low=0
    )
    thumb = read(manifest.loop.start)
    thumb = cv2.resize(thumb, (416, round(416 * thumb.shape[0] / thumb.shape[1])), interpolation=cv2.INTER_AREA)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{
        escape(manifest.name)
    } · enrolment report</title>
<style>{STYLE}</style></head><body><main>
<header>{picture(thumb, alt=manifest.name)}<div><h1>{escape(manifest.name)}</h1>
<p class="dim">Enrolment report · {manifest.frames} frames</p>
<span class="badge {badge[0]}">{badge[1]}</span></div></header>
<div class="tiles">{_tiles(evidence)}</div>
{_section("Remarks", _remarks(evidence))}
{_section("The clip", _clip_timeline(evidence))}
{_section("What was tracked", drawn, "Landmarks of four frames, from closed to open mouth.")}
{_section("The mouth at rest", resting, "The same frames of the idle video.")}
<div class="pair">{_section("Reprojection error, pixels of the 256 px crop", errors)}
{_section("Head yaw, degrees", head)}</div>
<div class="pair">{
        _section(
            "Mouth opening, frames",
            histogram(evidence.opening, marks, title="mouth opening"),
            "In units of the eye distance; the marks are the lip references.",
        )
    }
{_section("Sharpness of the face", sharp)}</div>
{
        _section(
            "Lip references",
            _contact_sheet(evidence, references),
            "Sorted by mouth opening; speech borrows lips, teeth and tongue here.",
        )
    }
{_section("Facts", _facts(evidence))}
</main></body></html>"""

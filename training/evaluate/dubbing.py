"""Figures of dubbing on unseen people: pictures whose mouth was exchanged get back the mouth of the recording.

A clip is enrolled on one half and judged on the other, both ways. The judged video is made from the recording: every
picture gets the mouth of another time, from references of the enrolled half. It is encoded, and dubbed as a user's
video is: its faces are found and fitted again, and the lips of the recording are painted into it, from references of
the enrolled half. So the truth is the recording itself, and no picture with the wanted mouth is among the references.

- psnr, lpips, dists: of the mouth box (MOUTH_GROWTH times the width of the lips), resized to BOX_PX.
- texture: mean squared high-pass inside the inner lips, where they are open, against the truth's.
- open: mean opening of the inner lips as tracked in the result, against the truth's; open_error: mean |log| of it.
- flicker: LPIPS of consecutive pictures, each laid onto the next by the mesh, against the recording's.
- seam: gradient along the edge of the pasted region, against the truth's.
- leak: driven with silence, the share of all pictures whose tracked mouth is open; `undubbed`: in the recording itself.

Baselines: `undubbed`, the judged video as it is; `reference`, the mouth of the reference with the nearest lips, pasted.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np
import torch
from rich.progress import track as progress
from torch import Tensor

from engine.avatar.file import Bank
from engine.backends.cpu import CpuBackend
from engine.models.morphable import CROP_PX, LIPS_INNER, LIPS_OUTER, VERTICES, MorphableModel, mouth_opening, project
from engine.models.weights import load_face_model
from engine.paint.align import Aligner
from engine.paint.composite import cut
from engine.paint.shape import Shape
from precompute.dubbing import faces as first_pass
from precompute.dubbing.mouths import FADE, change, talks, usable
from precompute.dubbing.painting import NewMouth, PaintedFace, Window, paint
from precompute.dubbing.people import Person, Run, people
from precompute.dubbing.references import Crops, choose
from precompute.dubbing.source import Picture, Source
from precompute.fit import rigid_poses
from precompute.frame_size import scan_size
from precompute.track import track
from training.data.clips import Clip, read_manifest
from training.evaluate.dists import Dists
from training.evaluate.flicker import Flicker
from training.evaluate.flicker import Sequence as Shown
from training.evaluate.measures import mouth_cavity, psnr, signed
from training.renderer.lpips import Lpips

log = logging.getLogger(__name__)

MIN_FRAMES, MAX_FRAMES = 40, 60  # of a half; more are not judged
CLIPS_PER_PERSON = 1  # the longest
EVERY, FLICKER_FRAMES = 3, 20  # pictures that are compared, and of a half that are judged for flicker
MIN_FACE_PX = 100
BOX_PX, MOUTH_GROWTH = 128, 1.5
FINE_PX = 512  # of the crop in which pictures are measured
HIGH_PASS_PX = 2.0 * FINE_PX / 390  # sigma 2 px at an eye distance of 120 px: a crop is 2.6 eye distances wide
CLOSED = 0.05  # model units: from here on a silent mouth counts as open
LOSSLESS_CRF = "6"
SHEET_COLUMNS = 6


@dataclass(frozen=True)
class Found:
    """One person in one video: the source, and the longest run as the only one."""

    source: Source
    person: Person

    @property
    def run(self) -> Run:
        return self.person.runs[0]


def find(path: Path, folder: Path, model: MorphableModel, backend: CpuBackend) -> Found | None:
    """The person seen most in a video, as dubbing finds it; None without one."""
    source = Source(path)
    faces = first_pass.scan(source, scan_size(*source.upright_size), folder)
    everybody = people(faces, first_pass.tracks(faces), model, backend)
    if not everybody:
        return None
    longest = max(everybody[0].runs, key=len)
    return Found(source, replace(everybody[0], runs=(longest,)))


class Judge:
    """Dubs halves of clips and measures them."""

    def __init__(self, backend: CpuBackend, model: MorphableModel) -> None:
        self._backend, self._model = backend, model
        self._lpips, self._dists = Lpips(), Dists()
        self._flicker, self._aligner = Flicker(model), Aligner(model)

    def references(self, found: Found, run: Run, folder: Path) -> Bank:
        """The references that dubbing would take from a run."""
        person = replace(found.person, runs=(run,))
        places = choose(person)[run.shot]
        crops = Crops(folder, best=True)
        for _ in crops.read_from(found.source, [(person, place) for place in places]):
            pass
        return crops.bank(person, run.shot, places)

    def painted(
        self, found: Found, run: Run, bank: Bank, lips: Sequence[Tensor], weights: np.ndarray | None = None
    ) -> list[Picture]:
        """The pictures of a run with new lips [V_low, 3] each, with a weight each."""
        window = Window()
        face = PaintedFace(run, found.source.upright_size, bank, window, self._model, self._backend)
        share = np.ones(len(run)) if weights is None else weights

        def mouths(k: int, picture: Picture) -> list[NewMouth]:
            return [NewMouth(face, k, lips[k], float(share[k]), float(min(1.0, share[k] / FADE)))] if share[k] else []

        pictures = list(found.source.pictures(run.start, run.stop))
        frames = paint(iter(pictures), mouths, window, self._backend.workers)
        return [replace(picture, frame=frame) for picture, frame in zip(pictures, frames, strict=True)]

    def lower(self, run: Run, order: np.ndarray | None = None) -> Tensor:
        """The lips [T, V_low, 3] of a run, with the expressions in another order."""
        beta = run.beta if order is None else run.beta[torch.from_numpy(order)]
        return self._model.vertices(run.alpha, beta)[:, self._model.lower]

    def crops(self, pictures: Sequence[Picture], run: Run, size: tuple[int, int]) -> list[np.ndarray]:
        """The crops [FINE_PX, FINE_PX, 3] of a run."""
        return [cut(p.scaled(size), box, FINE_PX) for p, box in zip(pictures, run.crop, strict=True)]

    def meshes(self, run: Run, lower: Tensor) -> list[np.ndarray]:
        """The meshes [V, 3] in crop pixels (of 256) with these lips."""
        vertices = self._model.vertices(run.alpha, run.beta)
        vertices[:, self._model.lower] = lower
        return [mesh.numpy() for mesh in project(vertices, run.pose)]

    @torch.inference_mode()
    def compare(self, images: list[np.ndarray], truth: list[np.ndarray], meshes: list[np.ndarray]) -> dict[str, float]:
        """Figures of crops against the recording's."""
        rows: dict[str, list[float]] = defaultdict(list)
        for image, true, mesh in list(zip(images, truth, meshes, strict=True))[::EVERY]:
            box = _mouth_box(mesh)
            pair = [cv2.resize(x[box], (BOX_PX, BOX_PX), interpolation=cv2.INTER_CUBIC) for x in (image, true)]
            tensors = [signed(x)[None] for x in pair]
            rows["psnr"].append(psnr(*pair))
            rows["lpips"].append(float(self._lpips(*tensors)))
            rows["dists"].append(float(self._dists(*tensors)))
            inside = mouth_cavity(mesh * (FINE_PX / CROP_PX), FINE_PX)
            if _opening_px(mesh) > 4:
                rows["texture"].append(_texture(image, inside) / max(_texture(true, inside), 1e-3))
        return {name: float(np.mean(values)) for name, values in rows.items()}

    @torch.inference_mode()
    def flicker(self, images: list[np.ndarray], run: Run, lower: Tensor) -> float:
        """LPIPS from picture to picture."""
        vertices = self._model.vertices(run.alpha, run.beta)
        vertices[:, self._model.lower] = lower
        neutral = self._model.mean + self._model.shape(run.alpha)
        shapes = list(map(Shape.posed, vertices, neutral, run.pose))
        small = [cv2.resize(x, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA) for x in images[:FLICKER_FRAMES]]
        return self._flicker(Shown(small, shapes))["temporal_lpips"]

    def seam(self, images: list[np.ndarray], run: Run) -> float:
        """Mean gradient, in grey levels, along the edge of the pasted region."""
        values = []
        neutral = self._model.mean + self._model.shape(run.alpha)
        shapes = map(Shape.posed, self._model.vertices(run.alpha, run.beta), neutral, run.pose)
        for image, shape in zip(images, shapes, strict=True):
            target = self._aligner.paste_target(shape, shape)
            ring = (target.paste_mask > 0.02) & (target.paste_mask < 0.98)
            grey = cv2.cvtColor(cv2.resize(image, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
            across, down = (
                cv2.Sobel(grey[target.window.pixels], cv2.CV_32F, *step, scale=1 / 8) for step in ((1, 0), (0, 1))
            )
            values.append(float(np.hypot(across, down)[ring].mean()))
        return float(np.mean(values))

    def opening(self, pictures: Sequence[Picture], size: tuple[int, int]) -> np.ndarray:
        """The canonical mouth opening [T] as tracked in the pictures, NaN without a face."""
        landmarks = track(picture.scaled(size) for picture in pictures)
        opening = np.full(len(pictures), np.nan)
        if landmarks.tracked.any():
            points = landmarks.points[landmarks.tracked][:, :VERTICES]
            rotation, scale, shift = rigid_poses(points, self._model)
            canonical = np.einsum("tij,tvi->tvj", rotation, points - shift[:, None]) / scale[:, None, None]
            opening[landmarks.tracked] = mouth_opening(torch.from_numpy(canonical)).numpy()
        return opening


def _mouth_box(mesh: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square around the outer lips, in crops of FINE_PX."""
    lips = mesh[list(LIPS_OUTER), :2] * (FINE_PX / CROP_PX)
    centre, half = (lips.min(0) + lips.max(0)) / 2, MOUTH_GROWTH * np.ptp(lips[:, 0]) / 2
    left, top = np.clip(centre - half, 0, FINE_PX - 8).astype(int)
    right, bottom = np.clip(centre + half, 8, FINE_PX).astype(int)
    return slice(top, bottom), slice(left, right)


def _opening_px(mesh: np.ndarray) -> float:
    return float(np.ptp(mesh[list(LIPS_INNER), 1]))


def _texture(image: np.ndarray, inside: np.ndarray) -> float:
    """Mean squared high-pass of the grey image inside the lips."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = grey - cv2.GaussianBlur(grey, (0, 0), HIGH_PASS_PX)
    return float((np.square(detail) * inside).sum() / max(float(inside.sum()), 1.0))


def write_video(pictures: Sequence[Picture], path: Path, rate: Fraction) -> None:
    """Write the frames nearly without loss."""
    with av.open(str(path), "w") as container:
        first = pictures[0].frame
        stream = container.add_stream("libx264", rate=rate, options={"crf": LOSSLESS_CRF, "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, getattr(first, name))
        for number, picture in enumerate(pictures):
            picture.frame.pts, picture.frame.time_base, picture.frame.pict_type = number, 1 / rate, 0
            container.mux(stream.encode(picture.frame))
        container.mux(stream.encode(None))


def _pasted_reference(judge: Judge, bank: Bank, run: Run, base: list[np.ndarray], lower: Tensor) -> list[np.ndarray]:
    """The baseline `reference`: into each crop the mouth box of the reference with the nearest lips."""
    model, out = judge._model, []
    lips = sorted({*LIPS_OUTER, *LIPS_INNER})
    vertices = model.vertices(bank.alpha, bank.beta)
    theirs = project(vertices, bank.pose).numpy()
    for t, image in enumerate(base):
        wanted = model.vertices(run.alpha[t], run.beta[t])
        wanted[model.lower] = lower[t]
        nearest = int((vertices[:, lips] - wanted[lips]).square().sum((1, 2)).argmin())
        to = _mouth_box(project(wanted, run.pose[t]).numpy())
        size = to[1].stop - to[1].start, to[0].stop - to[0].start
        crop = cv2.resize(bank.crops[nearest].numpy(), (FINE_PX, FINE_PX), interpolation=cv2.INTER_CUBIC)
        copy = image.copy()
        copy[to] = cv2.resize(crop[_mouth_box(theirs[nearest])], size, interpolation=cv2.INTER_CUBIC)
        out.append(copy)
    return out


def measure(clip: Clip, judge: Judge, folder: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The figures of both halves of a clip, and pictures: recording, judged video and result below each other."""
    model, backend = judge._model, judge._backend
    (folder / "clip").mkdir()
    found = find(clip.path, folder / "clip", model, backend)
    if found is None or len(found.run) < 2 * MIN_FRAMES:
        return [], []
    middle = len(found.run) // 2
    halves = [found.run.between(0, middle), found.run.between(middle, len(found.run))]
    rows, sheet = [], []
    for way, (enrolled, judged) in enumerate((halves, halves[::-1])):
        judged = judged.between(0, min(len(judged), MAX_FRAMES))
        place = folder / str(way)
        place.mkdir()
        bank = judge.references(found, enrolled, place / "references")
        order = np.roll(np.arange(len(judged)), len(judged) // 2)
        exchanged = judge.painted(found, judged, bank, list(judge.lower(judged, order)))
        write_video(exchanged, place / "exchanged.mkv", found.source.rate)
        again = find(place / "exchanged.mkv", place, model, backend)
        if again is None or len(again.run) < len(judged):
            log.warning("%s: the face was lost in the judged video", clip.name)
            continue
        figures, pictures = _half(judge, found, judged, again, bank)
        rows.append({"clip": clip.name, "identity": clip.identity, "way": way, **figures})
        sheet += pictures
    leak = _leak(judge, found, folder)
    return [row | leak for row in rows], sheet


def _half(judge: Judge, found: Found, judged: Run, again: Found, bank: Bank) -> tuple[dict[str, Any], list[np.ndarray]]:
    size, true_lips = found.source.upright_size, judge.lower(judged)
    recorded = list(found.source.pictures(judged.start, judged.stop))
    base = list(again.source.pictures())
    result = judge.painted(again, again.run, bank, list(true_lips))
    truth, before, ours = (judge.crops(pictures, judged, size) for pictures in (recorded, base, result))
    meshes = judge.meshes(judged, true_lips)
    opening = {
        name: judge.opening(pictures, size)
        for name, pictures in (("truth", recorded), ("ours", result), ("undubbed", base))
    }
    images = {
        "ours": ours,
        "undubbed": before,
        "reference": _pasted_reference(judge, bank, again.run, before, true_lips),
    }
    flicker = judge.flicker(truth, judged, true_lips)
    figures: dict[str, Any] = {}
    for name, crops in images.items():
        figures[name] = judge.compare(crops, truth, meshes)
        figures[name]["flicker"] = judge.flicker(crops, judged, true_lips) / flicker
        if name in opening:
            ratio = float(np.nanmean(opening[name]) / np.nanmean(opening["truth"]))
            figures[name] |= {"open": ratio, "open_error": abs(float(np.log(ratio)))}
    figures["ours"]["seam"] = judge.seam(ours, judged) / judge.seam(truth, judged)
    picks = np.linspace(0, len(ours) - 1, SHEET_COLUMNS).astype(int)
    sheet = [np.hstack([cv2.resize(crops[i], (256, 256)) for i in picks]) for crops in (truth, before, ours)]
    return figures, sheet


def _leak(judge: Judge, found: Found, folder: Path) -> dict[str, Any]:
    """Drive the whole run with silence, and look for open mouths."""
    person, run = found.person, found.run.between(0, min(len(found.run), 2 * MAX_FRAMES))
    rate_hz = float(found.source.rate)
    bank = judge.references(found, found.run, folder / "references")
    all_allowed, silence = np.ones(len(run), bool), np.zeros(len(run))
    done = change(usable(person, run), talks(run, rate_hz), silence, all_allowed, rate_hz)
    rest = judge._model.vertices(person.alpha, person.rest_beta)[judge._model.lower]
    pictures = judge.painted(found, run, bank, [rest] * len(run), done.lips)
    size = found.source.upright_size
    shares = {
        name: float((judge.opening(shown, size) > CLOSED).mean())
        for name, shown in (("ours", pictures), ("undubbed", list(found.source.pictures(run.start, run.stop))))
    }
    return {"leak": shares}


def evaluate(data: Path, runs: Path, out: Path) -> dict[str, Any]:
    """Write the figures of the module's docstring to `out`/dubbing.json, and for every clip a contact sheet
    `out`/dubbing-NAME.png: recording, judged video and result."""
    backend, model = CpuBackend.embedded(quality="best"), load_face_model()
    judge = Judge(backend, model)
    clips = _longest([c for c in read_manifest(data) if c.split == "val" and c.kind == "real"])
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for clip in progress(clips, "clips"):
        with TemporaryDirectory(dir=runs) as folder:
            found, sheet = measure(clip, judge, Path(folder))
        rows += found
        if sheet:
            cv2.imwrite(str(out / f"dubbing-{clip.name}.png"), np.vstack(sheet)[..., ::-1])
    report = {"halves": len(rows), "people": len({row["identity"] for row in rows}), **_means(rows), "each": rows}
    (out / "dubbing.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _longest(clips: list[Clip]) -> list[Clip]:
    """The longest clips with a large face, CLIPS_PER_PERSON of each person."""
    chosen: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: -clip.duration_s):
        if clip.face_px >= MIN_FACE_PX and len(chosen[clip.identity]) < CLIPS_PER_PERSON:
            chosen[clip.identity].append(clip)
    return [clip for clips in chosen.values() for clip in clips]


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for variant in ("ours", "undubbed", "reference", "leak"):
        names = dict.fromkeys(name for row in rows for name in row[variant])
        means[variant] = {n: round(float(np.mean([r[variant][n] for r in rows if n in r[variant]])), 4) for n in names}
    return means

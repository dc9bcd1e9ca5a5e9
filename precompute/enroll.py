"""One video of a person -> one `.avatar` file, stage by stage."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.avatar.file import SUFFIX, AvatarContents, Bank, network_fingerprints, write_avatar
from engine.avatar.loop import Loop
from engine.avatar.manifest import Manifest
from engine.avatar.video import VideoReader
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.config import Quality
from engine.errors import AvatarFileError, CorruptVideoError
from engine.media import FPS
from engine.models.morphable import MorphableModel, mouth_opening
from engine.models.weights import load_face_model
from engine.paint.painter import FittedVideo, PicturePainter
from precompute import bank
from precompute.encode import VideoWriter
from precompute.fit import FaceFit, fit
from precompute.idle import resting_lower_face, write_idle
from precompute.loop import find_loop
from precompute.quality import MIN_FACE_PX, MIN_FRAMES, Verdict, assess
from precompute.report import Evidence, render_report
from precompute.scan import Scan, scan
from precompute.style import rest_expression
from precompute.track import fill_gaps
from precompute.video import VideoInfo, probe, read_frames

Progress = Callable[[str, int, int], None]
"""(stage, done, total) of whatever the stage counts."""

FIT_ITERATIONS = 40
MAX_SCAN_S = 600  # nobody's avatar needs more, and a film must not be searched for an hour
BASE_SIZE = (1280, 720)  # longer and shorter side
THUMBNAIL_PX = 320
PAINTER_CACHE_BYTES = 16 * 1024 * 1024  # a painter reads forwards and keeps what it needs itself


@dataclass(frozen=True, kw_only=True)
class EnrollOptions:
    """What the user may decide."""

    keep_size: bool = False
    """Keep the video's own frame size even if it is larger than 1280x720 (costs speed with every live frame)."""
    max_s: float = 120.0
    """Use no more than so many seconds of the clip."""
    quality: Quality = "best"
    """fast: keep references and paint the idle video at 256 px, however large the face is, as a server with
    `--quality fast` paints speech."""
    name: str = ""
    """Name of the avatar; the output's file name by default."""
    consent: str = "not stated"
    """A note on the speaker's consent, kept in the file: who agreed to what, when."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What was made: the file, its manifest, the verdict on the clip, the fit, and the seconds that each stage took."""

    path: Path
    manifest: Manifest
    verdict: Verdict
    fit: FaceFit
    stage_s: dict[str, float]


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def _fit_factor(width: int, height: int) -> float:
    return min(1.0, BASE_SIZE[0] / max(width, height), BASE_SIZE[1] / min(width, height))


def scan_size(width: int, height: int) -> tuple[int, int]:
    """Size (width, height) at which a video of `width` x `height` is looked at: scaled down to fit, even."""
    factor = _fit_factor(width, height)
    return _even(width * factor), _even(height * factor)


def base_size(width: int, height: int, face_px: float, *, keep_size: bool = False) -> tuple[int, int]:
    """Size (width, height) of the base video: scaled down to fit, but never so far that a face of face_px source
    pixels falls below the least height that an avatar needs."""
    factor = 1.0 if keep_size else min(1.0, max(_fit_factor(width, height), 1.02 * MIN_FACE_PX / face_px))
    return _even(width * factor), _even(height * factor)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    """Painters that work side by side, one thread each; more than four would wait for the encoder."""
    return min(4, len(os.sched_getaffinity(0)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _look(video: Path, info: VideoInfo, progress: Progress) -> Scan:
    """First pass. A file that ends long before its own header says is refused."""
    total = min(MAX_SCAN_S, info.video_s or info.duration_s) * FPS
    frames = itertools.islice(read_frames(video, size=scan_size(info.width, info.height)), MAX_SCAN_S * FPS)
    seen = scan(frames, on_frame=lambda done: progress("face", done, max(done, round(total))))
    if info.video_s and len(seen) < 0.85 * total - 10:
        raise CorruptVideoError(
            f"the file ends early: {info.video_s:.1f} s of video are announced; copy or export it again",
            at_s=len(seen) / FPS,
        )
    return seen


def _fit_face(points: np.ndarray, model: MorphableModel, progress: Progress) -> FaceFit:
    with _threads(1):  # several threads on small tensors fight more than they help
        return fit(
            points,
            model,
            iterations=FIT_ITERATIONS,
            on_iteration=lambda done: progress("fit", done + 1, FIT_ITERATIONS),
        )


def _write_base(video: Path, path: Path, size: tuple[int, int], use: slice, progress: Progress) -> None:
    total = use.stop - use.start
    with VideoWriter(path, *size) as writer:
        for done, image in enumerate(itertools.islice(read_frames(video, size=size), use.start, use.stop)):
            writer.add(image)
            progress("base", done + 1, total)


def _thumbnail(image: np.ndarray) -> bytes:
    scale = THUMBNAIL_PX / image.shape[1]
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def _check_output(output: Path, video: Path) -> None:
    """Minutes of work must not end at a folder that cannot be written to, nor the video under the avatar."""
    if output.exists() and video.exists() and output.samefile(video):
        raise AvatarFileError(f"{output}: is the video itself; choose another -o")
    if not output.parent.is_dir():
        raise AvatarFileError(f"{output}: there is no folder {output.parent}; create it or choose another -o")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise AvatarFileError(f"{output}: cannot be written; choose another place with -o")


def _plain_name(text: str) -> str:
    """A name that may stand in addresses and file names."""
    return re.sub(r"[^\w .-]+", "_", text).strip(" .-_")[:100] or "speaker"


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.stage_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stage_s[name] = round(time.perf_counter() - start, 2)


@dataclass(frozen=True, kw_only=True)
class _Person:
    """What is known of the speaker after the fit, over the n frames of the base video.

    landmarks [n, 478, 3] in base pixels; alpha [n, K_s], beta [n, K_e]; opening [n] of the mouth; rest_beta [K_e];
    good [n] bool: fit to be a reference.
    """

    landmarks: np.ndarray
    fit: FaceFit
    alpha: Tensor
    beta: Tensor
    opening: np.ndarray
    rest_beta: Tensor
    good: np.ndarray
    loop: Loop


def _know(seen: Scan, verdict: Verdict, size: tuple[int, int], model: MorphableModel, progress: Progress) -> _Person:
    use = verdict.use
    scale = np.array([size[0] / seen.width, size[1] / seen.height, size[0] / seen.width], np.float32)
    landmarks = fill_gaps(seen.landmarks.points[use]) * scale
    face = _fit_face(landmarks, model, progress)
    alpha, beta = torch.from_numpy(face.alpha), torch.from_numpy(face.beta)
    good = bank.good_frames(face, seen.landmarks.found[use], seen.sharpness[use], verdict.yaw_deg)
    return _Person(
        landmarks=landmarks,
        fit=face,
        alpha=alpha,
        beta=beta,
        opening=mouth_opening(model.vertices(alpha, beta)).numpy(),
        rest_beta=rest_expression(model, alpha, beta, good),
        good=good,
        loop=find_loop(face.pose, face.crop, seen.thumbnails[use]),
    )


def _painter(
    person: _Person,
    read: Callable[[int], np.ndarray],
    references: dict[str, Tensor],
    model: MorphableModel,
    backend: Backend,
) -> PicturePainter:
    footage = FittedVideo(
        read=read,
        alpha=person.alpha,
        beta=person.beta,
        pose=torch.from_numpy(person.fit.pose),
        crop=torch.from_numpy(person.fit.crop),
    )
    return backend.painter(footage, Bank(**references), model)


def _quality(seen: Scan, verdict: Verdict, person: _Person, face_px: float) -> dict[str, Any]:
    """The summary in the manifest; pixels of errors are those of the 256 px crop, the face's those of the base."""

    def spread(values: np.ndarray, digits: int) -> list[float]:
        return [round(float(np.nanpercentile(values, q)), digits) for q in (2, 98)]

    return {
        "clip_s": round(len(seen) / FPS, 2),
        "used_from_s": round(verdict.use.start / FPS, 2),
        "used_s": round(verdict.usable_s, 2),
        "shots": len(verdict.shots),
        "face_px": round(face_px),
        "error_px": round(float(np.sqrt(np.square(person.fit.error_px).mean())), 2),
        "lip_error_px": round(float(np.sqrt(np.square(person.fit.lip_error_px).mean())), 2),
        "yaw_deg": spread(verdict.yaw_deg, 1),
        "mouth_opening": spread(person.opening, 3),
        "sharpness": round(verdict.sharpness, 1),
        "brightness": round(verdict.brightness, 1),
        "remarks": [f"{remark.code}: {remark.text}" for remark in verdict.remarks],
    }


def enroll(
    video: Path,
    output: Path,
    backend: Backend | None = None,
    options: EnrollOptions | None = None,
    *,
    networks: dict[str, str] | None = None,
    progress: Progress = lambda *_: None,
) -> Enrolled:
    """Make `output` from `video` with the networks of `backend`, which `networks` names (default: the embedded ones).

    Raises MediaError and its children for a clip that cannot be used, AvatarFileError for an output that cannot be
    written. On any failure an older `output` stays as it was and nothing else is left behind.
    """
    options = options or EnrollOptions()
    _check_output(output, video)
    info, model, clock = probe(video), load_face_model(), _Clock()
    backend = backend or CpuBackend.embedded()
    with clock.stage("face"):
        seen = _look(video, info, progress)
    verdict = assess(
        seen,
        model,
        source_scale=info.height / max(1, seen.height),
        max_frames=max(MIN_FRAMES, round(options.max_s * FPS)),
        has_audio=info.has_audio,
    )
    size = base_size(info.width, info.height, verdict.face_px, keep_size=options.keep_size)
    with clock.stage("fit"):
        person = _know(seen, verdict, size, model, progress)
    manifest = Manifest(
        name=_plain_name(options.name or output.name.removesuffix(SUFFIX)),
        width=size[0],
        height=size[1],
        frames=len(person.opening),
        loop=person.loop,
        source_sha256=_sha256(video),
        consent=options.consent,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        networks=network_fingerprints() if networks is None else networks,
        summary=_quality(seen, verdict, person, verdict.face_px * size[1] / info.height),
    )
    evidence = Evidence(
        manifest=manifest,
        info=info,
        seen=seen,
        verdict=verdict,
        fit=person.fit,
        landmarks=person.landmarks,
        opening=person.opening,
    )
    with tempfile.TemporaryDirectory(prefix="enrol-") as folder:
        _make_file(video, Path(folder), output, person, evidence, model, backend, options.quality, clock, progress)
    return Enrolled(path=output, manifest=manifest, verdict=verdict, fit=person.fit, stage_s=clock.stage_s)


def _make_file(
    video: Path,
    folder: Path,
    output: Path,
    person: _Person,
    evidence: Evidence,
    model: MorphableModel,
    backend: Backend,
    quality: Quality,
    clock: _Clock,
    progress: Progress,
) -> None:
    """Second pass: both videos and everything that is made from pixels, then the file itself."""
    manifest, base, idle = evidence.manifest, folder / "base.mp4", folder / "idle.mp4"
    size, count = (manifest.width, manifest.height), manifest.frames
    with clock.stage("base"):
        _write_base(video, base, size, evidence.verdict.use, progress)
    with VideoReader(base, shape=size[::-1], frames=count) as footage:
        with clock.stage("references"):
            progress("references", 0, 1)
            frames = bank.choose(person.opening, person.good)
            references = bank.build(frames, person.fit, footage.read, quality)
            progress("references", 1, 1)
        with clock.stage("idle"):
            lower = resting_lower_face(model, person.alpha, person.rest_beta)
            with ExitStack() as stack, _threads(1):
                stores = [
                    stack.enter_context(
                        VideoReader(base, shape=size[::-1], frames=count, cache_bytes=PAINTER_CACHE_BYTES)
                    )
                    for _ in range(_cores())
                ]
                painters = [_painter(person, store.read, references, model, backend).paint for store in stores]
                write_idle(idle, size, lower, painters, lambda done: progress("idle", done, count))
        with clock.stage("report"), VideoReader(idle, shape=size[::-1], frames=count) as resting:
            progress("report", 0, 1)
            contents = AvatarContents(
                manifest=manifest,
                alpha=person.alpha,
                beta=person.beta,
                pose=torch.from_numpy(person.fit.pose),
                crop=torch.from_numpy(person.fit.crop),
                style=backend.style((model.mean + model.expression(person.beta))[None])[0],
                rest_beta=person.rest_beta,
                bank=Bank(**references),
                base=base,
                idle=idle,
                report_html=render_report(evidence, references, footage.read, resting.read),
                thumbnail_jpeg=_thumbnail(resting.read(manifest.loop.start)),
            )
            write_avatar(output, contents)
            progress("report", 1, 1)

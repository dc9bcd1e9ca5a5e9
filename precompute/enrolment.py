"""Enrolment: one video of a person -> one `.avatar` file, stage by stage.

    Enrolment(Path("anna.mp4"), Path("anna.avatar")).run()

Two passes over the video. The first scans the landmarks, and the fit works on these alone. The second writes the base
video, the source of lip references, idle video and report.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from engine.avatar.file import SUFFIX, AvatarContents, Bank, network_fingerprints, write_avatar
from engine.avatar.manifest import Manifest
from engine.avatar.video import CACHE_BYTES, VideoReader
from engine.backends.backend import Backend
from engine.backends.select import backend_for
from engine.config import Quality
from engine.errors import CorruptVideoError
from engine.files import check_output, working_folder
from engine.media import FPS
from engine.models.speech import FRAME_SAMPLES, RATE_HZ
from engine.models.weights import load_face_model
from engine.paint.shape import LIPS
from precompute import bank
from precompute.assessment import MIN_FRAMES, Assessment, Remark, assess
from precompute.fit import FaceFit
from precompute.frame_size import base_size, scan_size
from precompute.idle import resting_lower_face, write_idle
from precompute.person import Person, fit_person, torch_threads
from precompute.persona import Persona, learn_persona
from precompute.report import ReportData, render_report
from precompute.scan import Scan, scan
from precompute.video import probe, read_audio, read_frames
from precompute.video_writer import VideoWriter

STAGES = ("face", "fit", "base", "references", "idle", "report")
Progress = Callable[[str, int, int], None]
"""(stage, done, total): a stage of STAGES and its progress in frames, iterations or steps."""

MAX_SCAN_S = 600  # enough for any avatar; scanning a whole film would take an hour
THUMBNAIL_PX, THUMBNAIL_JPEG_QUALITY = 320, 88
PAINTER_CACHE_BYTES = 16 * 1024 * 1024  # a painter reads forwards and keeps the frames that it needs again
MAX_PAINTERS = 4  # one thread each; more would wait for the video encoder


@dataclass(frozen=True, kw_only=True)
class EnrolmentOptions:
    """The user's choices."""

    keep_size: bool = False
    """Keep the frame size of the video even if it is larger than 1280x720. Larger frames cost speed live."""
    max_s: float = 120.0
    """Use at most this many seconds of the clip."""
    quality: Quality = "best"
    """fast: store references and paint the idle video at 256 px even for large faces, as a server with
    `--quality fast` paints speech."""
    device: str = "auto"
    """What paints the idle video: auto, cpu, cuda or cuda:N."""
    name: str = ""
    """Name of the avatar. Default: the name of the output file."""
    consent: str = "not stated"
    """A note on the speaker's consent, stored in the file: who agreed to what, and when."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """The result: the file, its manifest, the assessment of the clip, the fit, and the seconds of each stage."""

    path: Path
    manifest: Manifest
    assessment: Assessment
    fit: FaceFit
    stage_s: dict[str, float]


class Enrolment:
    """Enrols the speaker of one video. Each stage is a method; `run` calls them in order.

    `backend` has the networks that paint, `networks` their fingerprints for the manifest; the embedded ones by default.
    `progress` is called on the thread that runs the stages; an exception that it raises ends the enrolment. `on_remark`
    gets each flaw of the clip once it is assessed.

    Raises OutputError for an output that cannot be written, NotAVideoError or CorruptVideoError for a file that
    does not open as a video, WeightsError for networks that cannot be loaded, SettingError or DeviceError for a device
    that cannot be used.
    """

    def __init__(
        self,
        video: Path,
        output: Path,
        options: EnrolmentOptions | None = None,
        *,
        backend: Backend | None = None,
        networks: dict[str, str] | None = None,
        progress: Progress = lambda *_: None,
        on_remark: Callable[[Remark], None] = lambda _: None,
    ) -> None:
        check_output(output, (SUFFIX,), {"video": video})
        self.video, self.output = video, output
        self.options = options or EnrolmentOptions()
        self.info = probe(video)
        self.stage_s: dict[str, float] = {}
        self._model = load_face_model()
        self._backend = backend or backend_for(self.options.device, self.options.quality)
        self._networks = network_fingerprints() if networks is None else networks
        self._progress, self._on_remark = progress, on_remark

    def run(self) -> Enrolled:
        """Write the avatar to `output`.

        Raises MediaError and its children for a clip that cannot be used, OutputError for an output that cannot be
        written. A failure leaves an older `output` unchanged and no other file.
        """
        with self._stage("face"):
            clip = self.scan()
        assessment = self.assess(clip)
        for remark in assessment.remarks:
            self._on_remark(remark)
        with self._stage("fit"):
            person = self.fit(clip, assessment)
            persona = self.learn_persona(assessment, person)
        manifest = self.describe(clip, assessment, person, persona)
        with working_folder() as folder:
            base, idle = folder / "base.mp4", folder / "idle.mp4"
            with self._stage("base"):
                self.write_base(base, assessment, manifest)
            with self._stage("references"):
                references = self.choose_references(base, person, manifest)
            with self._stage("idle"):
                self.write_idle(idle, base, person, references, manifest)
            with self._stage("report"):
                report = ReportData(manifest=manifest, info=self.info, scan=clip, assessment=assessment, person=person)
                self.write_avatar(base, idle, references, report, persona)
        return Enrolled(
            path=self.output, manifest=manifest, assessment=assessment, fit=person.fit, stage_s=self.stage_s
        )

    def scan(self) -> Scan:
        """First pass. Raises CorruptVideoError for a file that ends long before the end that its header states."""
        info = self.info
        jumps: dict[int, float] = {}  # frame -> seconds
        total = min(MAX_SCAN_S, info.video_s or info.duration_s) * FPS
        images = read_frames(self.video, size=scan_size(info.width, info.height), on_jump=jumps.__setitem__)
        clip = scan(
            itertools.islice(images, MAX_SCAN_S * FPS),
            on_frame=lambda done: self._progress("face", done, max(done, round(total))),
            jumps=jumps,
        )
        stated = (info.video_s - sum(jumps.values())) * FPS
        if info.video_s and len(clip) < 0.85 * min(total, stated) - 10:
            raise CorruptVideoError(
                f"the file ends early: its header states {info.video_s:.1f} s of video; copy or export it again",
                at_s=len(clip) / FPS,
            )
        return clip

    def assess(self, clip: Scan) -> Assessment:
        """Choose the stretch of the clip to use.

        Raises FaceError, StillPictureError or ClipTooShortError where there is none."""
        return assess(
            clip,
            self._model,
            source_scale=self.info.height / max(1, clip.height),
            max_frames=max(MIN_FRAMES, round(self.options.max_s * FPS)),
            has_audio=self.info.has_audio,
            wide_colours=self.info.wide_colours,
        )

    def fit(self, clip: Scan, assessment: Assessment) -> Person:
        """Fit the face model to the used stretch, in pixels of the base video."""
        on_iteration = lambda done, total: self._progress("fit", done, total)  # noqa: E731
        return fit_person(clip, assessment, self._size(assessment), self._model, on_iteration=on_iteration)

    def learn_persona(self, assessment: Assessment, person: Person) -> Persona:
        """How the speaker moves the lips (see `precompute.persona`)."""
        sound = read_audio(self.video, RATE_HZ) if self.info.has_audio else None
        if sound is not None:
            sound = sound[assessment.use.start * FRAME_SAMPLES : assessment.use.stop * FRAME_SAMPLES]
        with torch_threads(1):
            return learn_persona(self._backend, self._model, person.alpha.mean(0), person.beta, person.good, sound)

    def describe(self, clip: Scan, assessment: Assessment, person: Person, persona: Persona) -> Manifest:
        """The manifest of the avatar."""
        width, height = self._size(assessment)
        return Manifest(
            name=_plain_name(self.options.name or self.output.name.removesuffix(SUFFIX)),
            width=width,
            height=height,
            frames=len(person.opening),
            loop=person.loop,
            source_sha256=_sha256(self.video),
            consent=self.options.consent,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            networks=self._networks,
            summary={
                **_figures(clip, assessment, person, assessment.face_px * height / self.info.height),
                "persona": persona.summary(),
            },
        )

    def write_base(self, path: Path, assessment: Assessment, manifest: Manifest) -> None:
        """Second pass: the used stretch of the source in the size of the base video."""
        use, size = assessment.use, (manifest.width, manifest.height)
        images = itertools.islice(read_frames(self.video, size=size), use.start, use.stop)
        with VideoWriter(path, *size) as writer:
            for done, image in enumerate(images, start=1):
                writer.add(image)
                self._progress("base", done, manifest.frames)

    def choose_references(self, base: Path, person: Person, manifest: Manifest) -> dict[str, Tensor]:
        """The members of bank.safetensors (see `precompute.bank.build`)."""
        self._progress("references", 0, 1)
        lips = self._model.vertices(person.alpha, person.beta)[:, LIPS].numpy()
        frames = bank.choose(person.opening, lips, person.pose[:, :3].numpy(), person.good)
        with _open(base, manifest) as reader:
            references = bank.build(frames, person.fit, reader.read, self.options.quality)
        self._progress("references", 1, 1)
        return references

    def write_idle(
        self, path: Path, base: Path, person: Person, references: dict[str, Tensor], manifest: Manifest
    ) -> None:
        """Paint the mouth at rest into every frame of the base video, on several threads."""
        lower = resting_lower_face(self._model, person.alpha, person.rest_beta)
        with ExitStack() as stack, torch_threads(1):
            on_cpu = self._backend.device.type == "cpu"  # a GPU paints for one thread
            readers = [
                stack.enter_context(_open(base, manifest, cache_bytes=PAINTER_CACHE_BYTES))
                for _ in range(min(MAX_PAINTERS, len(os.sched_getaffinity(0))) if on_cpu else 1)
            ]
            painters = [person.painter(reader.read, references, self._model, self._backend) for reader in readers]
            write_idle(
                path,
                (manifest.width, manifest.height),
                lower,
                [painter.paint for painter in painters],
                on_frame=lambda done: self._progress("idle", done, manifest.frames),
            )

    def write_avatar(
        self, base: Path, idle: Path, references: dict[str, Tensor], report: ReportData, persona: Persona
    ) -> None:
        """Render the report and write the file."""
        self._progress("report", 0, 1)
        manifest, person, model = report.manifest, report.person, self._model
        with _open(base, manifest) as base_reader, _open(idle, manifest) as idle_reader:
            contents = AvatarContents(
                manifest=manifest,
                alpha=person.alpha,
                beta=person.beta,
                pose=person.pose,
                crop=person.crop,
                style=self._backend.style((model.mean + model.expression(person.beta))[None])[0],
                rest_beta=person.rest_beta,
                persona=persona.change,
                bank=Bank(**references),
                base=base,
                idle=idle,
                report_html=render_report(report, references, base_reader.read, idle_reader.read),
                thumbnail_jpeg=_thumbnail(idle_reader.read(manifest.loop.start)),
            )
        write_avatar(self.output, contents)
        self._progress("report", 1, 1)

    def _size(self, assessment: Assessment) -> tuple[int, int]:
        """Width and height of the base video."""
        return base_size(self.info.width, self.info.height, assessment.face_px, keep_size=self.options.keep_size)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stage_s[name] = round(time.perf_counter() - start, 2)


def _open(path: Path, manifest: Manifest, cache_bytes: int = CACHE_BYTES) -> VideoReader:
    shape = (manifest.height, manifest.width)
    return VideoReader(path, shape=shape, frames=manifest.frames, cache_bytes=cache_bytes)


def _plain_name(text: str) -> str:
    """A name that may stand in addresses and file names."""
    return re.sub(r"[^\w .-]+", "_", text).strip(" .-_")[:100] or "speaker"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thumbnail(image: np.ndarray) -> bytes:
    """image [H, W, 3] uint8 RGB as a JPEG of THUMBNAIL_PX width."""
    scale = THUMBNAIL_PX / image.shape[1]
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_JPEG_QUALITY])[1].tobytes()


def _figures(clip: Scan, assessment: Assessment, person: Person, face_px: float) -> dict[str, Any]:
    """The manifest's figures of the clip. Errors are in pixels of the 256 px crop, `face_px` in those of the base."""

    def spread(values: np.ndarray, digits: int) -> list[float]:
        return [round(float(np.nanpercentile(values, q)), digits) for q in (2, 98)]

    return {
        "clip_s": round(len(clip) / FPS, 2),
        "used_from_s": round(assessment.use.start / FPS, 2),
        "used_s": round(assessment.usable_s, 2),
        "shots": len(assessment.shots),
        "face_px": round(face_px),
        "error_px": round(float(np.sqrt(np.square(person.fit.error_px).mean())), 2),
        "lip_error_px": round(float(np.sqrt(np.square(person.fit.lip_error_px).mean())), 2),
        "yaw_deg": spread(assessment.yaw_deg, 1),
        "mouth_opening": spread(person.opening, 3),
        "sharpness": round(assessment.sharpness, 1),
        "brightness": round(assessment.brightness, 1),
        "remarks": [f"{remark.code}: {remark.text}" for remark in assessment.remarks],
    }

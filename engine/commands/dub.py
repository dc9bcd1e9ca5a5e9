"""Dubbing: an avatar speaks a sound file in a new clip, or a video gets other words. `engine.dub`, and the command."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import av
import tyro
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from rich.console import Console

from engine.audio import float_to_pcm
from engine.avatar.avatar import Avatar
from engine.avatar.file import SUFFIX
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.select import backend_for
from engine.child import Listener, Report, WorkEvent, WorkProgress
from engine.cluster import FileTask, joined, run_tasks
from engine.commands.dub_display import Display, JsonLines
from engine.config import ComputeConfig, SessionConfig
from engine.dubbing import DubOptions, Length, Speech, dub_video, faces_of, parts_of
from engine.errors import DubbingError, PersonaStreamError, SettingError
from engine.files import SIGNATURES, check_output, ffmpeg_name, replaced
from engine.live.pipeline import AvatarPipeline
from engine.media import FPS, SAMPLE_RATE_HZ, MediaUnit
from engine.models.weights import load_face_model
from engine.sound_file import SoundFile

CRF = "17"
BT709 = Colorspace.ITU709  # the number of the matrix, primaries and transfer in ITU-T H.273
SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")  # containers that hold H.264 and AAC
RESUME = "The same command with --resume continues behind the finished parts."
PROGRESS_S = 0.2  # between two reports of it


def dub(
    source: str | Path,
    speech: Speech,
    output: str | Path,
    backend: Backend | None = None,
    *,
    face: int | Literal["auto"] = "auto",
    length: Length = DubOptions.length,
    from_s: float | None = None,
    to_s: float | None = None,
    mix_db: float | None = None,
    report: str | Path | None = None,
    resume: bool = False,
    quality: Literal["best", "fast"] = DubOptions.quality,
    expressiveness: float = SessionConfig.expressiveness,
    progress: Callable[[WorkProgress], None] | None = None,
) -> Report:
    """Write `output`: `source`, an avatar or a video, speaks the sound file `speech`. Returns the report of the work.

    An avatar gives a new clip as long as the speech; `backend` computes it, the CPU by default. A video stays as it is
    but for the mouth of the face that speaks, in a child process; the options are its own, those of `DubOptions`.

    speech: a file, or one for each face that speaks, by its number.  face: who speaks one file; auto: whoever did.
    expressiveness: of an avatar: how far the lips move, 0 to 2, 1 as the speaker's do.  progress: called up to five
    times a second.

    Raises OutputError for an output that cannot be written, or that is one of the inputs; SettingError for an option
    that does not fit; MediaError, AvatarFileError, WeightsError, DependencyError, DubbingError. A failure leaves an
    older `output` unchanged.
    """
    options = DubOptions(
        length=length,
        from_s=from_s,
        to_s=to_s,
        mix_db=mix_db,
        report=None if report is None else Path(report),
        resume=resume,
        quality=quality,
    )

    def listen(event: WorkEvent) -> None:
        if progress is not None and isinstance(event, WorkProgress):
            progress(event)

    if is_avatar(Path(source)):
        sound, config = _only(speech, face, options), SessionConfig(expressiveness=expressiveness)
        return _dub_avatar(Path(source), sound, Path(output), backend, config, listen)
    _refuse(expressiveness)
    return dub_video(Path(source), faces_of(speech, face), Path(output), options, listen)


def _refuse(expressiveness: float) -> None:
    """Raise SettingError for an expressiveness of a video."""
    if expressiveness != SessionConfig.expressiveness:
        raise SettingError(f"--expressiveness {expressiveness:g}: an avatar has it, a video does not; leave it out")


def is_avatar(path: Path) -> bool:
    """Whether `path` is an avatar: by its content, or by its name, where its content may be damaged."""
    if path.suffix.lower() == SUFFIX or not path.is_file():
        return path.suffix.lower() == SUFFIX
    ((_, mark),) = SIGNATURES[SUFFIX]
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:  # not readable, as the dub will say
        return False


def _only(speech: Speech, face: int | Literal["auto"], options: DubOptions) -> Path:
    """The one speech of an avatar. Raises SettingError for what only a video has."""
    plain = DubOptions()
    given = [
        each.name for each in dataclasses.fields(options) if getattr(options, each.name) != getattr(plain, each.name)
    ]
    names = ["--" + name.removesuffix("_s").removesuffix("_db") for name in given]
    names += ["--face"] * (face != "auto") + ["--speech"] * (not isinstance(speech, str | Path))
    if names:
        raise SettingError(
            f"{', '.join(names)}: not for an avatar, whose dub is a new clip with one face, as long as the speech; "
            "leave it out, or give a video instead of the avatar"
        )
    return faces_of(speech)["auto"]


def _dub_avatar(
    avatar: Path, speech: Path, output: Path, backend: Backend | None, config: SessionConfig, listen: Listener
) -> Report:
    check_output(output, SUFFIXES, {"avatar": avatar, "speech": speech})
    sound = SoundFile(speech)
    backend = backend or CpuBackend.embedded()
    pipeline = AvatarPipeline(backend, Avatar.open(avatar, quality=backend.quality), load_face_model())
    total = math.ceil(sound.duration_s * FPS) + config.release_frames
    with replaced(output) as temporary:
        pcm = map(float_to_pcm, sound.blocks(SAMPLE_RATE_HZ))
        frames = _write(temporary, pipeline, pipeline.speak(pcm, config), _Pace(total, listen))
    return {"output": str(output), "seconds": frames / FPS, "pictures": frames}


class _Pace:
    """Tells `listen` how far the pictures are, and how long the others take at this pace."""

    def __init__(self, total: int, listen: Listener):
        self._total, self._listen = total, listen
        self._began_s = self._told_s = time.monotonic()

    def __call__(self, done: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < PROGRESS_S and done < self._total:
            return
        self._told_s = now_s
        total = max(self._total, done)
        left_s = (now_s - self._began_s) * (total - done) / done
        self._listen(WorkProgress("pictures", done, total, left_s))


def _write(path: Path, pipeline: AvatarPipeline, units: Iterable[MediaUnit], told: Callable[[int], None]) -> int:
    """Write all units into the container at `path`; returns the number of frames."""
    frames = 0
    with av.open(ffmpeg_name(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = pipeline.avatar.width, pipeline.avatar.height, "yuv420p"
        codec = video.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = ColorRange.MPEG
        convert = VideoReformatter()
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for unit in units:
            picture = convert.reformat(
                av.VideoFrame.from_ndarray(unit.image, format="rgb24"),
                format="yuv420p",
                dst_colorspace=BT709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            )
            picture.pts, picture.time_base = frames, Fraction(1, FPS)
            container.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(unit.samples[None], format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE_HZ, unit.pts, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(audio.encode(sound))
            frames += 1
            told(frames)
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return frames


def speeches_of(pairs: Iterable[str]) -> dict[int, Path]:
    """The sound files by face, from `1=a.wav`. Raises SettingError."""
    files: dict[int, Path] = {}
    for pair in pairs:
        number, _, path = pair.partition("=")
        if not (number.isascii() and number.isdigit() and path):
            raise SettingError(
                f"--speech {pair}; expected FACE=FILE, such as 1=anna.wav, with a number from the report"
            )
        if int(number) in files:
            raise SettingError(f"--speech {pair}: face {number} has a speech already; expected one for each face")
        files[int(number)] = Path(path)
    return files


def _dub_files(command: Dub, inputs: list[Path], output: Path) -> None:
    """The task of a cluster: `command` for these files."""
    source, speech = inputs
    alone = dataclasses.replace(command, source=source, speech=speech, more=(), output=output)
    alone._dub(lambda event: None)


@dataclass(frozen=True, kw_only=True)
class Dub:
    """Make an avatar speak a sound file in a new clip, or give a video other words.

    Of a video only the mouth of the face that speaks changes, and the sound. Options but -o, --json, --device,
    --quality and --expressiveness are for videos.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """The .avatar file, or the video."""
    speech: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SPEECH")] = None
    """The sound file. Without it, --speech names one for each face."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SPEECH…")] = ()
    """With --cluster, more sound files: each becomes a video in the folder -o."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.mp4")
    """The file to write. An older file is replaced only when the new one is complete."""
    cluster: bool = False
    """Dub on the machines of a Ray cluster: the one of this machine, of RAY_ADDRESS, or a new one."""
    json: bool = False
    """Print progress and result as lines of JSON, and nothing else, on the standard output."""
    face: int | Literal["auto"] = "auto"
    """Who speaks: a number from the report, or the face whose mouth moved with the original sound."""
    speeches: Annotated[tuple[str, ...], tyro.conf.arg(name="speech"), tyro.conf.UseAppendAction] = ()
    """FACE=FILE, once for each face that speaks, instead of SPEECH: --speech 1=anna.wav --speech 2=bob.wav"""
    expressiveness: float = SessionConfig.expressiveness
    """Of an avatar: how far the lips move, 0 to 2, 1 as the speaker's do. Closed lips stay closed."""
    options: Annotated[DubOptions, tyro.conf.arg(name="")] = field(default_factory=DubOptions)
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)

    def run(self) -> int:
        if self.cluster:
            return self._dub_on_cluster()
        if self.more:
            raise SettingError(f"{1 + len(self.more)} sound files; expected one, or --cluster and a folder as -o")
        with JsonLines() if self.json else Display() as display:
            try:
                display.finish(self._dub(display.show))
            except PersonaStreamError as error:
                display.fail(error)
                if isinstance(error, DubbingError) and parts_of(self.output).is_dir():
                    raise DubbingError(f"{error} {RESUME}") from error
                raise
            except KeyboardInterrupt as interrupt:
                hint = (f"interrupted. {RESUME}",) if parts_of(self.output).is_dir() else ()
                raise KeyboardInterrupt(*hint) from interrupt
        return 0

    def _dub_on_cluster(self) -> int:
        if self.speech is None or self.json or self.options.report or self.options.resume:
            raise SettingError("--cluster: expected sound files, without --speech, --json, --report and --resume")
        if self.output.suffix in SUFFIXES:
            raise SettingError(f"-o {self.output}: with --cluster expected a folder, for a video of each sound file")
        speeches = (self.speech, *self.more)
        outputs = [self.output / f"{speech.stem}.mp4" for speech in speeches]
        if len(set(outputs)) < len(outputs):
            raise SettingError("two of the sound files have the same name; rename one: the videos are named after them")
        self.output.mkdir(parents=True, exist_ok=True)
        tasks = [FileTask((self.source, speech), output) for speech, output in zip(speeches, outputs, strict=True)]
        with joined(None, start=True):
            return run_tasks(partial(_dub_files, self), tasks, Console(stderr=True))

    def _dub(self, listen: Listener) -> Report:
        speech = self._speech()
        if is_avatar(self.source):
            sound = _only(speech, self.face, self.options)
            backend = backend_for(self.compute.device, self.compute.quality, self.compute.gpu_mode)
            config = SessionConfig(expressiveness=self.expressiveness)
            return _dub_avatar(self.source, sound, self.output, backend, config, listen)
        _refuse(self.expressiveness)
        quality = "best" if self.compute.quality == "auto" else self.compute.quality
        if quality not in ("best", "fast"):
            raise SettingError(f"--quality {quality}: a video has every picture painted; expected best or fast")
        if self.compute.device not in ("auto", "cpu"):
            raise SettingError(f"--device {self.compute.device}: videos are dubbed on the CPU; leave it out")
        options = dataclasses.replace(self.options, quality=quality)
        return dub_video(self.source, faces_of(speech, self.face), self.output, options, listen)

    def _speech(self) -> Speech:
        if (self.speech is None) != bool(self.speeches):
            raise SettingError("expected one SPEECH, or --speech FACE=FILE for each face that speaks")
        return self.speech if self.speech is not None else speeches_of(self.speeches)

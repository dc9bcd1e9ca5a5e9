"""The command `personastream dub`: an avatar speaks a sound file, offline, into a video file."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import tyro
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from engine.audio import float_to_pcm
from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.select import backend_for
from engine.config import ComputeConfig, SessionConfig
from engine.files import check_output, ffmpeg_name, printable, replaced
from engine.live.pipeline import AvatarPipeline
from engine.media import FPS, SAMPLE_RATE_HZ
from engine.models.weights import load_face_model
from engine.sound_file import SoundFile

CRF = "17"
BT709 = Colorspace.ITU709  # the number of the matrix, primaries and transfer in ITU-T H.273
SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")  # containers that hold H.264 and AAC


def dub(
    avatar: str | Path,
    speech: str | Path,
    output: str | Path,
    backend: Backend | None = None,
    config: SessionConfig | None = None,
) -> int:
    """Write `output`, H.264 and AAC: the avatar speaks the sound file `speech`. Returns the number of frames (25 fps).

    backend: the CPU by default; `engine.backends.select.backend_for("auto")` takes a GPU where there is one.

    Raises OutputError for an output that cannot be written, or that is one of the inputs; AvatarFileError,
    SpeechFormatError, WeightsError. A failure leaves an older `output` unchanged and no other file.
    """
    avatar, speech, output = Path(avatar), Path(speech), Path(output)
    check_output(output, SUFFIXES, {"avatar": avatar, "speech": speech})
    sound = SoundFile(speech)
    backend = backend or CpuBackend.embedded()
    pipeline = AvatarPipeline(backend, Avatar.open(avatar, quality=backend.quality), load_face_model())
    with replaced(output) as temporary:
        return _write(temporary, pipeline, map(float_to_pcm, sound.blocks(SAMPLE_RATE_HZ)), config)


def _write(path: Path, pipeline: AvatarPipeline, pcm: Iterable[np.ndarray], config: SessionConfig | None) -> int:
    """Write all units of pcm, blocks [N] int16, into the container at `path`; returns the number of frames."""
    frames = 0
    with av.open(ffmpeg_name(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = pipeline.avatar.width, pipeline.avatar.height, "yuv420p"
        codec = video.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = ColorRange.MPEG
        convert = VideoReformatter()
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for unit in pipeline.speak(pcm, config):
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
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return frames


@dataclass(frozen=True, kw_only=True)
class Dub:
    """Make a video of an avatar that speaks a sound file; the pictures equal those of a live session."""

    avatar: tyro.conf.Positional[Path]
    speech: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.mp4")
    expressiveness: float = SessionConfig.expressiveness
    """How far the lips move, 0 to 2: 1 as the speaker's do. Closed lips stay closed."""
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)

    def run(self) -> int:
        began = time.perf_counter()
        backend = backend_for(self.compute.device, self.compute.quality)
        config = SessionConfig(expressiveness=self.expressiveness)
        frames = dub(self.avatar, self.speech, self.output, backend, config)
        print(f"{printable(self.output)}: {frames / FPS:.1f} s of video in {time.perf_counter() - began:.1f} s")
        return 0

"""Offline: a sound file through the same timeline and performer as a live session, into a video file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from engine.avatar import Avatar
from engine.backend import Backend, TorchBackend
from engine.config import SessionConfig
from engine.errors import OutputError, SpeechFormatError
from engine.media import FPS, SAMPLE_RATE_HZ, MediaUnit, float_to_pcm
from engine.performer import Performer, finish
from engine.weights import load_face_model

CRF = "17"
SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")  # containers that hold H.264 and AAC


def read_speech(path: Path) -> np.ndarray:
    """Any sound file as mono int16 [N] at 48 kHz. Raises SpeechFormatError."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise SpeechFormatError(f"{path}: holds no sound; expected speech as WAV, FLAC, MP3, M4A or Opus")
            resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)
            # The mean of the channels: the library's own way to mono adds 3 dB, which clips what both sides say.
            parts = [
                out.to_ndarray().mean(0)
                for frame in (*container.decode(audio=0), None)
                for out in resampler.resample(frame)
            ]
    except (av.error.FFmpegError, OSError) as error:
        raise SpeechFormatError(f"{path}: cannot be read as sound ({error}); expected WAV, FLAC, MP3…") from error
    if not parts:
        raise SpeechFormatError(f"{path}: holds no sound that decodes; export the speech again as WAV, FLAC or MP3")
    return float_to_pcm(np.concatenate(parts))


def speak(performer: Performer, pcm: np.ndarray, config: SessionConfig | None = None) -> Iterator[MediaUnit]:
    """The units of a session that says pcm [N] int16 (48 kHz) from its first frame until the mouth has closed."""
    timeline = performer.new_timeline(config or SessionConfig())
    timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    timeline.push_audio("speech", pcm.tobytes())
    timeline.end_utterance("speech")
    while not timeline.idle:
        while (job := timeline.next_job(timeline.next_frame, 0)) is not None:
            job = timeline.take(job)
            finish(timeline, job, performer.perform(job), 0)
        yield timeline.emit()[0]


def dub(avatar: Path, speech: Path, output: Path, backend: Backend | None = None) -> int:
    """Write `output` (H.264 and AAC) with the avatar saying `speech`; the number of frames.

    Raises OutputError for an output that cannot be written, or that is one of the inputs. On any failure an older
    `output` stays as it was and nothing else is left behind.
    """
    _check_output(output, avatar, speech)
    pcm = read_speech(speech)
    backend = backend or TorchBackend.embedded()
    performer = Performer(backend, Avatar.open(avatar, quality=backend.quality), load_face_model())
    try:
        handle, name = tempfile.mkstemp(prefix=f".{output.stem}.", suffix=output.suffix, dir=output.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            frames = _write(temporary, performer, pcm)
            temporary.chmod(0o644)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{output}: cannot be written ({error}); make room or choose another -o") from error
    return frames


def _check_output(output: Path, avatar: Path, speech: Path) -> None:
    """Minutes of work must not end at a folder that cannot be written to, nor what is read under what is written."""
    for path, what in ((avatar, "avatar"), (speech, "speech")):
        if output.exists() and path.exists() and output.samefile(path):
            raise OutputError(f"{output}: is the {what} itself; choose another -o")
    if output.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{output}: expected a video file's name, ending in {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; create it or choose another -o")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: cannot be written; choose another place with -o")


def _write(path: Path, performer: Performer, pcm: np.ndarray) -> int:
    """All units of pcm [N] int16 into the container at `path`; the number of frames."""
    frames = 0
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = performer.avatar.width, performer.avatar.height, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for unit in speak(performer, pcm):
            picture = av.VideoFrame.from_ndarray(unit.image, format="rgb24")
            picture.pts, picture.time_base = frames, Fraction(1, FPS)
            container.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(unit.samples[None], format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE_HZ, unit.pts, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(audio.encode(sound))
            frames += 1
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return frames

"""Offline: a sound file through the same timeline and performer as a live session, into a video file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from engine.avatar import Avatar
from engine.backend import Backend, TorchBackend
from engine.config import SessionConfig
from engine.errors import SpeechFormatError
from engine.media import FPS, SAMPLE_RATE_HZ, MediaUnit, float_to_pcm
from engine.models.morphable import load_face_model
from engine.performer import Performer, finish

CRF = "17"


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
        raise SpeechFormatError(f"{path}: holds no sound that decodes")
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
    """Write `output` (H.264 and AAC) with the avatar saying `speech`; the number of frames."""
    pcm = read_speech(speech)
    performer = Performer(backend or TorchBackend.embedded(), Avatar.open(avatar), load_face_model())
    frames = 0
    with av.open(str(output), "w", options={"movflags": "+faststart"}) as container:
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

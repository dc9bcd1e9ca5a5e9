"""A published stream or a recording, read back with PyAV."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np


@dataclass
class Found:
    """Times in seconds, in the order of the file."""

    video_s: list[float]
    keyframes_s: list[float]
    sound_s: list[float]
    codecs: dict[str, str]
    rate_hz: int
    width: int
    pictures: list[float]  # mean brightness of the upper left corner
    sound: np.ndarray  # float32 [N], one channel
    heard_s: float = 0.0  # when its first sample is played

    @property
    def fps(self) -> float:
        return (len(self.video_s) - 1) / (self.video_s[-1] - self.video_s[0])


def on_grid(times_s: list[float], step_s: float) -> bool:
    """Whether times are whole steps apart, to the 2 ms of a container's rounding, and without a larger step that
    divides them all: a busy machine may lose any number."""
    steps = np.diff(times_s) / step_s
    whole = np.rint(steps)
    return bool(
        (abs(steps - whole) * step_s < 0.0021).all() and (whole >= 1).all() and np.gcd.reduce(whole.astype(int)) == 1
    )


def read(source: str, seconds: float | None = None) -> Found:
    """Decode `seconds` of a file or URL, or all of it, up to a part that a crash has cut off."""
    found = Found([], [], [], {}, 0, 0, [], np.zeros(0, np.float32))
    pieces = []
    with av.open(source, timeout=60) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        found.codecs = {"video": video.codec_context.name, "audio": sound.codec_context.name}
        found.rate_hz, found.width = sound.codec_context.sample_rate, video.codec_context.width
        try:
            for packet in container.demux(video, sound):
                if packet.pts is None:
                    continue
                at_s = float(packet.pts * packet.time_base)
                (found.video_s if packet.stream is video else found.sound_s).append(at_s)
                if packet.stream is video and packet.is_keyframe:
                    found.keyframes_s.append(at_s)
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        corner = frame.to_ndarray(format="gray")[: frame.height // 8, : frame.width // 8]
                        found.pictures.append(float(corner.mean()))
                    else:
                        found.heard_s = found.heard_s if pieces else float(frame.pts * frame.time_base)
                        pieces.append(frame.to_ndarray()[0])
                if seconds is not None and found.video_s and found.video_s[-1] - found.video_s[0] >= seconds:
                    break
        except av.error.InvalidDataError:
            pass
    found.sound = np.concatenate(pieces) if pieces else found.sound
    return found

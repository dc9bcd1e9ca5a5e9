"""Any video file -> frames at a constant 25 fps, and its sound on the same time axis.

Time zero is the first video frame as it is presented: edit lists, audio priming and different stream starts
are resolved by the container's own timestamps, which the demuxer and the decoders already respect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from engine.errors import CorruptVideoError, MediaError, NotAVideoError
from engine.media import FPS


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts from the container. `width` and `height` are as displayed (rotation and pixel shape applied).

    `duration_s` is the file's, `video_s` that of its video stream; 0 where the container does not state it.
    """

    width: int
    height: int
    source_fps: float
    duration_s: float
    video_s: float
    codec: str
    has_audio: bool


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except FileNotFoundError as error:
        raise NotAVideoError(f"{path}: there is no such file; give the path of a video of the speaker") from error
    except (av.error.FFmpegError, IsADirectoryError, PermissionError) as error:
        if path.is_file() and _has_video_signature(path):
            raise CorruptVideoError(
                f"{path}: begins like a video but cannot be opened ({error}); it is cut off: copy or export it again"
            ) from error
        raise NotAVideoError(
            f"{path}: cannot be read as a video ({error}); expected a file such as MP4, MOV, MKV or WebM"
        ) from error


def _has_video_signature(path: Path) -> bool:
    """Whether the first bytes are those of MP4/MOV, Matroska/WebM or AVI."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1a\x45\xdf\xa3", b"RIFF")


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise NotAVideoError(f"{path}: holds no video stream; expected a video of a person speaking")
    streams[0].thread_type = "AUTO"
    return streams[0]


class _Upright:
    """Decoded frames to RGB as displayed: with pixel shape, rotation and, if given, `size` (width, height) applied."""

    def __init__(self, sample_aspect: float, size: tuple[int, int] | None = None):
        self._aspect, self._size = sample_aspect, size
        self._convert = VideoReformatter()  # keeps its conversion tables from frame to frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        width, height = self._size or (max(2, round(frame.width * self._aspect)), frame.height)
        if self._size and turns % 2:
            width, height = height, width
        how = Interpolation.BICUBIC if (width, height) != (frame.width, frame.height) else None
        image = self._convert.reformat(frame, width, height, "rgb24", interpolation=how, threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, k=turns)) if turns else image


def probe(path: Path) -> VideoInfo:
    """Read the header and the first frame. Raises NotAVideoError or CorruptVideoError."""
    with _open(path) as container:
        stream = _video_stream(container, path)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise CorruptVideoError(f"{path}: the first frame does not decode ({error}); export it again") from error
        if first is None:
            raise CorruptVideoError(f"{path}: holds no frame that decodes; export the video again")
        height, width = _Upright(aspect)(first).shape[:2]
        duration = container.duration / av.time_base if container.duration else 0.0
        return VideoInfo(
            width=width,
            height=height,
            source_fps=float(stream.average_rate or FPS),
            duration_s=duration,
            video_s=float((stream.duration or 0) * (stream.time_base or 0)),
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
        )


def read_frames(path: Path, *, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Yield RGB frames [H, W, 3] uint8 at 25 fps: for every grid time n / 25 s the source frame nearest to it.

    `size` is the (width, height) to scale to, as displayed; the video's own by default.

    Raises NotAVideoError, and CorruptVideoError with the time reached where decoding breaks off.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        upright = _Upright(float(stream.sample_aspect_ratio or 1) or 1.0, size)
        origin: float | None = None
        held: av.VideoFrame | None = None
        held_s, gap_s, emitted = 0.0, 1.0 / FPS, 0
        try:
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                origin = frame.time if origin is None else origin
                now_s = frame.time - origin
                if held is not None:
                    gap_s = now_s - held_s
                    image = None
                    while emitted / FPS < held_s + gap_s / 2:
                        image = upright(held) if image is None else image
                        yield image
                        emitted += 1
                held, held_s = frame, now_s
        except av.error.FFmpegError as error:
            raise CorruptVideoError(
                f"{path}: decoding broke off ({error}); export the video again or cut it before this place",
                at_s=held_s,
            ) from error
        if held is None:
            raise CorruptVideoError(f"{path}: holds no frame that decodes; export the video again")
        image = upright(held)
        while emitted / FPS < held_s + min(gap_s, 0.5) / 2:
            yield image
            emitted += 1


def read_audio(path: Path, sample_rate_hz: int) -> np.ndarray | None:
    """Mono float32 [N] in [-1, 1] at `sample_rate_hz`, or None without sound.

    Sample 0 coincides with frame 0 of `read_frames`. Raises MediaError where the sound does not decode.
    """
    with _open(path) as container:
        if not container.streams.audio:
            return None
        first_video = next(container.decode(_video_stream(container, path)), None)
        origin = first_video.time if first_video is not None and first_video.time is not None else 0.0
    with _open(path) as container:
        resampler = av.AudioResampler(format="fltp", rate=sample_rate_hz)  # not mono: its mix is 3 dB louder
        parts: list[np.ndarray] = []
        start_s: float | None = None
        try:
            for frame in container.decode(container.streams.audio[0]):
                start_s = frame.time if start_s is None else start_s
                frame.pts = None
                parts += [out.to_ndarray().mean(0) for out in resampler.resample(frame)]
            parts += [out.to_ndarray().mean(0) for out in resampler.resample(None)]
        except av.error.FFmpegError as error:
            raise MediaError(f"{path}: the sound does not decode ({error}); export the file again") from error
    if not parts:
        return None
    samples = np.concatenate(parts)
    shift = round(((start_s or 0.0) - origin) * sample_rate_hz)
    return np.concatenate([np.zeros(shift, np.float32), samples]) if shift > 0 else samples[-shift:]

"""Any video file -> frames at a constant 25 fps, and its sound on the same time axis.

Time zero is the first video frame as it is presented: edit lists, audio priming and different stream starts
are resolved by the container's own timestamps, which the demuxer and the decoders already respect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import av.error
import av.filter
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from engine.errors import CorruptVideoError, NotAVideoError
from engine.files import ffmpeg_name
from engine.media import FPS
from engine.sound_file import SoundFile

UNNAMED = 2  # the matrix, by its number in ITU-T H.273
HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers there
WIDE_PRIMARIES = (9, 11, 12)  # BT.2020, DCI-P3, Display P3
MAX_GAP_S = 1.0  # between two frames of a film; a longer one is a jump of its time stamps
IDET_FRAMES = 30  # looked at for interlacing
MIN_COMBED = 8  # of them


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts from the container. `width` and `height` are as displayed (rotation and pixel shape applied).

    `duration_s` is the file's, counted where the container does not state it, as in what browsers record. `video_s` is
    that of its video stream, 0 where the container does not state it.
    """

    width: int
    height: int
    source_fps: float
    duration_s: float
    video_s: float
    codec: str
    has_audio: bool
    wide_colours: bool = False  # HDR or a wide gamut, mapped to BT.709


def open_video(path: Path) -> av.container.InputContainer:
    try:
        return av.open(ffmpeg_name(path))
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


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The video stream with the most pixels: a cover picture or a small preview may come first."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise NotAVideoError(f"{path}: holds no video stream; expected a video of a person speaking")
    stream = max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)
    stream.thread_type = "AUTO"
    return stream


class Upright:
    """Decoded frames of one stream to RGB as displayed: colours of BT.709, with pixel shape, the first frame's display
    matrix and, if given, `size` (width, height) applied."""

    def __init__(self, sample_aspect: float, size: tuple[int, int] | None = None):
        self._aspect, self._size = sample_aspect, size
        self._convert = VideoReformatter()  # keeps its conversion tables from frame to frame
        self._graph: av.filter.Graph | None = None
        self._orientation: tuple[bool, bool, bool] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        # A frame that was asked for its side data lives in a cycle with it until the garbage collector comes by.
        self._orientation = self._orientation or orientation(frame)
        transposed, *mirrored = self._orientation
        width, height = self._size or (max(2, round(frame.width * self._aspect)), frame.height)
        if self._size and transposed:
            width, height = height, width
        image = (self._mapped if is_wide(frame) else self._plain)(frame, width, height)
        image = image.transpose(1, 0, 2) if transposed else image
        steps = [-1 if flip else 1 for flip in mirrored]
        return np.ascontiguousarray(image[:: steps[1], :: steps[0]])

    def _plain(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        how = Interpolation.BICUBIC if (width, height) != (frame.width, frame.height) else None
        # Players take the matrix of HD from video of that size that names none; the library takes that of SD.
        unnamed_hd = frame.colorspace == UNNAMED and (frame.width >= 1280 or frame.height > 576)
        source = Colorspace.ITU709 if unnamed_hd else None
        return self._convert.reformat(
            frame, width, height, "rgb24", src_colorspace=source, interpolation=how, threads=1
        ).to_ndarray()

    def _mapped(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """With the colours of HDR and wide gamuts mapped: reference white (203 cd/m², BT.2408) becomes white."""
        if self._graph is None:
            mapping = f"{width}:{height}:flags=bicubic:out_primaries=bt709:out_transfer=bt709"
            self._graph = filter_graph(frame, ("scale", mapping), ("format", "rgb24"))
        self._graph.push(frame)
        mapped = self._graph.pull()
        assert isinstance(mapped, av.VideoFrame)
        return mapped.to_ndarray()


def filter_graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """A chain of FFmpeg's filters, each (name, arguments), for frames like `frame`."""
    graph = av.filter.Graph()
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:"
        f"time_base={frame.time_base or Fraction(1, FPS)}:"
        f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    graph.link_nodes(
        graph.add("buffer", source),
        *(graph.add(name, arguments) for name, arguments in filters),
        graph.add("buffersink"),
    ).configure()
    return graph


def is_wide(frame: av.VideoFrame) -> bool:
    """Whether the frame has the transfer curve of HDR or the primaries of a wide gamut (ITU-T H.273)."""
    return frame.color_trc in HDR_TRANSFERS or frame.color_primaries in WIDE_PRIMARIES


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame is displayed, by its display matrix: transposed, and then mirrored horizontally and vertically."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(cast(bytes, data), "<i4")[:5]  # x' = a x + c y, y' = b x + d y
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def interlacing_of(path: Path) -> str | None:
    """Arguments of the deinterlacer for a video that is flagged as interlaced or looks like it; None for another."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        found = {"tff": 0, "bff": 0, "progressive": 0}
        graph = None
        try:
            for frame in itertools.islice(container.decode(stream), IDET_FRAMES):
                if frame.interlaced_frame:
                    return "send_frame:auto:interlaced"
                graph = graph or filter_graph(frame, ("idet", ""))
                frame.pts = None
                graph.push(frame)
            if graph is not None:
                graph.push(None)
                while True:
                    kind = graph.pull().metadata.get("lavfi.idet.multiple.current_frame") or "undetermined"
                    found[kind] = found.get(kind, 0) + 1
        except (av.error.FFmpegError, BlockingIOError, ValueError):
            pass  # the end, or a fault that reading reports
    parity = max(("tff", "bff"), key=found.__getitem__)
    return f"send_frame:{parity}:all" if found[parity] > max(MIN_COMBED, found["progressive"]) else None


class _Clock:
    """Times of frames from zero, without jumps. Raw stamps may be missing, repeat, jump, or be wrong for one frame."""

    def __init__(self, usual_s: float):
        self._usual_s = usual_s  # between two frames
        self._raw_s: float | None = None
        self.now_s = 0.0

    def advance(self, raw_s: float | None, next_s: float | None) -> float:
        """Advance to the frame with stamp `raw_s`, which one with `next_s` follows. Returns the seconds jumped over."""
        if self._raw_s is None:
            self._raw_s = 0.0 if raw_s is None else raw_s
            return 0.0
        expected_s = self._raw_s + self._usual_s
        if raw_s is None or (not self._follows(raw_s) and next_s is not None and self._follows(next_s)):
            raw_s = expected_s
        gap_s = raw_s - self._raw_s
        jumped_s = 0.0 if self._follows(raw_s) or abs(gap_s) < MAX_GAP_S else gap_s
        if self._follows(raw_s):
            self._usual_s = gap_s
        else:
            gap_s = self._usual_s
        self.now_s, self._raw_s = self.now_s + gap_s, raw_s
        return jumped_s

    def _follows(self, raw_s: float) -> bool:
        assert self._raw_s is not None
        return 0 < raw_s - self._raw_s <= max(MAX_GAP_S, 4 * self._usual_s)


def probe(path: Path) -> VideoInfo:
    """Read the header and the first frame. Raises NotAVideoError or CorruptVideoError."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise CorruptVideoError(f"{path}: the first frame does not decode ({error}); export it again") from error
        if first is None:
            raise CorruptVideoError(f"{path}: holds no frame that decodes; export the video again")
        height, width = Upright(sample_aspect(stream))(first).shape[:2]
        duration = container.duration / av.time_base if container.duration else _counted_s(container, stream)
        return VideoInfo(
            width=width,
            height=height,
            source_fps=float(stream.average_rate or FPS),
            duration_s=duration,
            video_s=float((stream.duration or 0) * (stream.time_base or 0)),
            codec=stream.codec_context.name,
            has_audio=bool(container.streams.audio),
            wide_colours=is_wide(first),
        )


def _counted_s(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The time of the last packet that can be read."""
    last = 0
    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            last = max(last, packet.pts or 0)
    return float(last * (stream.time_base or 0))


def sample_aspect(stream: av.VideoStream) -> float:
    return float(stream.sample_aspect_ratio or 1) or 1.0


def read_frames(
    path: Path, *, size: tuple[int, int] | None = None, on_jump: Callable[[int, float], None] = lambda *_: None
) -> Iterator[np.ndarray]:
    """Yield RGB frames [H, W, 3] uint8 at 25 fps: for every grid time n / 25 s the source frame nearest to it.

    `size` is the (width, height) to scale to, as displayed; the video's own by default. Where the time stamps jump, the
    frames follow each other; `on_jump(n, seconds)` is called before the first frame n behind the jump.

    Raises NotAVideoError, and CorruptVideoError with the time reached where decoding breaks off.
    """
    interlacing = interlacing_of(path)
    with open_video(path) as container:
        stream = video_stream(container, path)
        upright = Upright(sample_aspect(stream), size)
        clock = _Clock(1 / float(stream.guessed_rate or FPS))
        held: av.VideoFrame | None = None
        held_s, gap_s, emitted = 0.0, 1.0 / FPS, 0
        try:
            for frame, following in pairwise(_chained(container.decode(stream), interlacing)):
                assert frame is not None
                jumped_s = clock.advance(frame.time, following.time if following else None)
                if held is not None:
                    gap_s = clock.now_s - held_s
                    image = None
                    while emitted / FPS < held_s + gap_s / 2:
                        image = upright(held) if image is None else image
                        yield image
                        emitted += 1
                    if jumped_s:
                        on_jump(emitted, jumped_s)
                held, held_s = frame, clock.now_s
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


def _chained(frames: Iterator[av.VideoFrame], interlacing: str | None) -> Iterator[av.VideoFrame | None]:
    """The frames, deinterlaced if need be, and a None at the end."""
    yield from frames if interlacing is None else progressive(frames, interlacing)
    yield None


def progressive(frames: Iterator[av.VideoFrame], interlacing: str) -> Iterator[av.VideoFrame]:
    graph = None
    for frame in frames:
        graph = graph or filter_graph(frame, ("bwdif", interlacing))
        graph.push(frame)
        yield from _pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph)


def _pulled(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame


def read_audio(path: Path, sample_rate_hz: int) -> np.ndarray | None:
    """Mono float32 [N] in [-1, 1] at `sample_rate_hz`, or None without sound.

    Sample 0 coincides with frame 0 of `read_frames`. Raises MediaError where the sound does not decode.
    """
    with open_video(path) as container:
        if not container.streams.audio:
            return None
        first_video = next(container.decode(video_stream(container, path)), None)
        origin = first_video.time if first_video is not None and first_video.time is not None else 0.0
    sound = SoundFile(path)
    samples = np.concatenate([np.zeros(0, np.float32), *sound.blocks(sample_rate_hz)])
    shift = round(((sound.start_s or 0.0) - origin) * sample_rate_hz)
    return np.concatenate([np.zeros(shift, np.float32), samples]) if shift > 0 else samples[-shift:]

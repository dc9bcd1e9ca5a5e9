"""A video's pictures as decoded, each with its number and its own time."""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from engine.errors import CorruptVideoError, StillPictureError
from engine.media import FPS
from precompute.video import Upright, interlacing_of, open_video, orientation, progressive, video_stream

MISSING = np.iinfo(np.int64).min  # a time stamp that the file lacks
MAX_PAUSE_S = 600  # that a picture stands; a longer gap is a jump of the time stamps
MAX_BAD_READS = 100  # in a row: the container cannot be read any further
CUT_OFF_S, CUT_OFF_SHARE = 0.5, 0.02  # the video ends earlier than stated by more than both
MOST = 0.5  # of the stated length: with less, the file is refused
HELD_BYTES = 200 << 20  # of pictures, when they are read backwards


@dataclass(frozen=True)
class Remark:
    """A flaw of the source, or something that the output cannot hold. `at_s` is the source's time."""

    code: str
    text: str
    at_s: float | None = None


@dataclass(frozen=True)
class Display:
    """How a coded frame is displayed: its pixels become square, then it is transposed, then mirrored."""

    width: int  # of the coded frame
    height: int
    aspect: Fraction = Fraction(1)  # of a pixel
    transposed: bool = False
    mirrored: bool = False  # horizontally
    flipped: bool = False  # vertically

    @property
    def square_width(self) -> int:
        """The coded frame's width once its pixels are square."""
        return max(2, round(self.width * self.aspect))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return (self.height, self.square_width) if self.transposed else (self.square_width, self.height)


@dataclass(frozen=True)
class Picture:
    """One frame. Times count from the first picture."""

    number: int
    time_s: Fraction
    duration_s: Fraction
    frame: av.VideoFrame  # as decoded; nobody changes its samples
    display: Display

    def scaled(self, size: tuple[int, int]) -> np.ndarray:
        """Upright RGB [H, W, 3] uint8 of `size` (width, height) in the colours of BT.709."""
        if not hasattr(_of_thread, "uprights"):
            _of_thread.uprights = {}
        key = (size, self.display, self.frame.format.name)
        if key not in _of_thread.uprights:
            _of_thread.uprights[key] = Upright(1.0, size)
        return _of_thread.uprights[key](self.frame)


_of_thread = threading.local()  # converters keep tables that threads cannot share


@dataclass(frozen=True)
class Times:
    """The times of all pictures, in ticks of `time_base`, which is 1/n seconds."""

    time_base: Fraction
    ticks: np.ndarray  # [T] int64, strictly increasing from 0
    end: int  # tick at which the last picture ends
    stamps: np.ndarray  # [T] int64 in ticks, as they stand in the file, or MISSING
    keys: np.ndarray  # [T] bool: decoding can begin there

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def duration_s(self) -> Fraction:
        return self.end * self.time_base

    @property
    def origin_s(self) -> Fraction:
        """The first picture's time in the container."""
        return Fraction(0) if self.stamps[0] == MISSING else int(self.stamps[0]) * self.time_base

    def save(self, path: Path) -> None:
        """Write them to `path`, an `.npz` file."""
        facts = np.array([self.time_base.denominator, self.end], np.int64)
        np.savez(path, facts=facts, ticks=self.ticks, stamps=self.stamps, keys=self.keys)

    @classmethod
    def load(cls, path: Path) -> Times:
        with np.load(path, allow_pickle=False) as saved:
            per_second, end = (int(value) for value in saved["facts"])
            return cls(Fraction(1, per_second), saved["ticks"], end, saved["stamps"], saved["keys"])


class Source:
    """Reads a video's pictures.

    width, height: of the coded frame.  rate: pictures a second, on average.  duration_s: as stated by the file.
    times: of all pictures, known after the first whole pass, or set from an earlier one; with them, `pictures` seeks.
    remarks: flaws found so far.  first: the first frame, with the colours and side data of all.

    Raises NotAVideoError, StillPictureError and CorruptVideoError.
    """

    def __init__(self, path: Path, times: Times | None = None):
        self.path, self.times = path, times
        self._remarks: dict[Remark, None] = {}
        self._origin_s = 0.0  # the first frame's time in the container
        self._interlacing = interlacing_of(path)
        with open_video(path) as container:
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise StillPictureError(f"{path}: is a picture; expected a video of a person who speaks")
            stream = video_stream(container, path)
            self.has_sound = bool(container.streams.audio)
            self.stream_index, self.codec = stream.index, stream.codec_context.name
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(FPS)
            self.time_base = Fraction(1, (stream.time_base or Fraction(1, 90_000)).denominator)
            whole_s = container.duration / av.time_base if container.duration else 0.0
            first = next(self._decoded(container, stream), None)
            if first is None:
                raise CorruptVideoError(f"{path}: holds no frame that decodes; export the video again")
            self._origin_s = first.time or 0.0
            self._stated_s = _stated_s(stream, self._origin_s)
            self.duration_s = self._stated_s or whole_s
            self.frames_estimate = stream.frames or max(1, round(self.duration_s * self.rate))
            aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        self.display = Display(first.width, first.height, aspect, *orientation(first))
        self.width, self.height, self.upright_size = first.width, first.height, self.display.size
        self._convert = VideoReformatter()
        self.first = self._of_kept_format(first)
        if self._interlacing:
            self._remark("interlaced", "the video is interlaced; the output has whole pictures")

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return tuple(self._remarks)

    def pictures(self, start: int = 0, stop: int | None = None) -> Iterator[Picture]:
        """Every picture that decodes, in the order of presentation, from number `start` until before `stop`.

        A damaged end is remarked. Raises CorruptVideoError where less than half of the video decodes.
        """
        found = self._sought(start) if start and self.times is not None and self._may_seek(self.times) else None
        pictures = found or itertools.islice(self._from_the_first(), start, None)
        return itertools.islice(pictures, None if stop is None else max(0, stop - start))

    def backwards(self, start: int, stop: int) -> Iterator[Picture]:
        """The pictures from number `stop` - 1 down to `start`, a few at a time in memory. The stretch must have been
        read forwards before, or it is decoded from the video's beginning every time."""
        frame_bytes = sum(plane.buffer_size for plane in self.first.planes)
        count = max(4, HELD_BYTES // frame_bytes)
        for end in range(stop, start, -count):
            yield from reversed(list(self.pictures(max(start, end - count), end)))

    def _from_the_first(self) -> Iterator[Picture]:
        ticks, stamps, keys = array("q"), array("q"), array("b")
        usual = max(1, round(1 / (self.rate * self.time_base)))
        held: av.VideoFrame | None = None
        with open_video(self.path) as container:
            stream = video_stream(container, self.path)
            frames = self._checked(self._decoded(container, stream))
            if self._interlacing:
                frames = progressive(frames, self._interlacing)
            for tick, stamp, frame in self._timed(self._kept(frames), usual):
                if held is not None:
                    yield self._picture(len(ticks) - 1, ticks[-1], tick, held)
                ticks.append(tick)
                stamps.append(stamp)
                keys.append(frame.key_frame)
                held = frame
        if held is None:
            raise CorruptVideoError(f"{self.path}: holds no frame that decodes; export the video again")
        end = ticks[-1] + (self._ticks(held.duration, held) or (ticks[-1] - ticks[-2] if len(ticks) > 1 else usual))
        if self.times is None:
            self.times = Times(self.time_base, np.array(ticks), end, np.array(stamps), np.array(keys, dtype=bool))
        yield self._picture(len(ticks) - 1, ticks[-1], end, held)

    def _picture(self, number: int, tick: int, end: int, frame: av.VideoFrame) -> Picture:
        return Picture(number, tick * self.time_base, (end - tick) * self.time_base, frame, self.display)

    def _timed(self, frames: Iterator[av.VideoFrame], usual: int) -> Iterator[tuple[int, int, av.VideoFrame]]:
        """Each frame behind its tick and its stamp. `usual`: ticks between two frames."""
        clock = _Clock(usual, MAX_PAUSE_S * self.time_base.denominator)
        for frame, following in pairwise(itertools.chain(frames, [None])):
            assert frame is not None
            stamp = self._stamp(frame)
            jumped = clock.advance(stamp, self._stamp(following) if following else None)
            if jumped:
                text = f"the time stamps jump by {float(jumped * self.time_base):.2f} s; the pictures go on"
                self._remark("time-jump", text, float(clock.now * self.time_base))
            yield clock.now, MISSING if stamp is None else stamp, frame

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        return None if frame.pts is None else self._ticks(frame.pts, frame)

    def _ticks(self, value: int, frame: av.VideoFrame) -> int:
        return round((value or 0) * (frame.time_base or self.time_base) / self.time_base)

    def _may_seek(self, times: Times) -> bool:
        """Whether every picture is known again by its stamp. Deinterlacing looks at the pictures before."""
        return self._interlacing is None and bool(times.stamps[0] != MISSING and (np.diff(times.stamps) > 0).all())

    def _sought(self, start: int) -> Iterator[Picture] | None:
        """The pictures from `start` on, decoded from a key frame before it; None where the container does not seek to
        it exactly."""
        times = self.times
        assert times is not None
        if start >= len(times):
            return iter(())
        key = int(times.stamps[np.flatnonzero(times.keys[: start + 1]).max(initial=0)])
        pictures = self._decoded_from(key, start, times)
        first = next(pictures, None)
        return None if first is None else itertools.chain([first], pictures)

    def _decoded_from(self, stamp: int, start: int, times: Times) -> Iterator[Picture]:
        with open_video(self.path) as container:
            stream = video_stream(container, self.path)
            assert stream.time_base
            try:
                container.seek(int(stamp * self.time_base / stream.time_base), stream=stream)
            except FFmpegError:
                return
            number = start
            for frame in self._kept(self._decoded(container, stream)):
                found = self._stamp(frame)
                if found is None or found < times.stamps[number]:
                    continue
                if found > times.stamps[number]:
                    if number == start:
                        return
                    continue
                following = int(times.ticks[number + 1]) if number + 1 < len(times) else times.end
                yield self._picture(number, int(times.ticks[number]), following, frame)
                number += 1
                if number == len(times):
                    return

    def _kept(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The frames in one of the kept pixel formats. Raises CorruptVideoError where their size changes."""
        for frame in frames:
            if (frame.width, frame.height) != (self.width, self.height):
                raise CorruptVideoError(
                    f"{self.path}: the pictures change from {self.width} x {self.height} to {frame.width} x "
                    f"{frame.height}; export the video with pictures of one size",
                    at_s=frame.time,
                )
            yield self._of_kept_format(frame)

    def _decoded(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """All frames that decode; decoding goes on behind a packet that does not."""
        bad = 0
        while bad < MAX_BAD_READS:
            try:
                for packet in container.demux(stream):
                    bad = 0
                    try:
                        frames = packet.decode()
                    except FFmpegError:
                        at_s = float((packet.pts or packet.dts or 0) * packet.time_base) - self._origin_s
                        self._remark("damaged", "pictures do not decode; those before them stay longer", at_s)
                        continue
                    yield from frames
                return
            except FFmpegError:
                bad += 1

    def _checked(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The frames, and at their end a remark if the video is cut off; CorruptVideoError if most of it is missing."""
        reached_s, stated_s = 0.0, self._stated_s
        for frame in frames:
            reached_s = reached_s if frame.time is None else max(reached_s, frame.time - self._origin_s)
            yield frame
        if stated_s - reached_s <= max(CUT_OFF_S, CUT_OFF_SHARE * stated_s):
            return
        if reached_s < MOST * stated_s:
            raise CorruptVideoError(
                f"{self.path}: only {reached_s:.2f} s of {stated_s:.2f} s can be read; copy or export the video again",
                at_s=reached_s,
            )
        text = f"what follows after {reached_s:.2f} s of {stated_s:.2f} s cannot be read and is left out"
        self._remark("cut-off", text, reached_s)

    def _of_kept_format(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame in the nearest planar YUV format of 8 or 10 bits: without loss where there is such a format."""
        kept = _kept_format(frame.format)
        if kept == frame.format.name:
            return frame
        bits, alpha = max(c.bits for c in frame.format.components), any(c.is_alpha for c in frame.format.components)
        if bits > 10 or alpha or frame.format.is_rgb or frame.format.has_palette:
            self._remark("pixel-format", f"the pixels are {frame.format.name}; the output's are {kept}")
        if not frame.format.is_rgb and not frame.format.has_palette:
            return self._convert.reformat(frame, format=kept)
        converted = self._convert.reformat(
            frame, format=kept, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        converted.colorspace, converted.color_range = Colorspace.ITU709, ColorRange.MPEG
        return converted

    def _remark(self, code: str, text: str, at_s: float | None = None) -> None:
        if not any(code == other.code for other in self._remarks):
            self._remarks[Remark(code, text, at_s)] = None


class _Clock:
    """Ticks of frames from 0, strictly increasing. Stamps of the file hold but where they are missing, repeat, jump
    back or far ahead, or are wrong for one frame; a gap of minutes is a picture that stands, as players show it."""

    def __init__(self, usual: int, longest: int):
        self._usual, self._longest = usual, longest  # ticks between two frames
        self._stamp: int | None = None
        self.now = 0

    def advance(self, stamp: int | None, following: int | None) -> int:
        """Advance to the frame with `stamp`, which one with `following` follows. Returns the ticks jumped over."""
        if self._stamp is None:
            self._stamp = stamp or 0
            return 0
        before, jumped = self._stamp, 0
        if following is not None and following > before:
            if stamp is None or not before < stamp <= following:
                stamp = min(before + self._usual, max(before + 1, (before + following) // 2))
        elif stamp is None:
            stamp = before + self._usual
        if before < stamp <= before + self._longest:
            self.now += stamp - before
        else:
            self.now, jumped = self.now + self._usual, stamp - before
        self._stamp = stamp
        return jumped


def _stated_s(stream: av.VideoStream, origin_s: float) -> float:
    """The video stream's length by the container, with its first frame at `origin_s`; 0 where it does not state it."""
    if stream.duration:
        return float(stream.duration * (stream.time_base or 0))
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska's: 00:01:02.500000000
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - origin_s
    except ValueError:
        return 0.0


def _kept_format(form: av.VideoFormat) -> str:
    """The name of the planar YUV format that is nearest to `form`; full range of JPEG keeps its `j`."""
    bits = max(component.bits for component in form.components)
    if form.name.startswith("yuvj4") and form.name[4:7] in ("420", "422", "444"):
        return form.name
    if form.is_rgb or form.has_palette:
        chroma = "444"
    elif len(form.components) < 3:
        chroma = "420"
    else:
        chroma = {16: "444", 8: "422"}.get(form.chroma_width(16), "422")
        if form.chroma_height(16) < 16:
            chroma = "420" if form.chroma_width(16) < 16 else "444"
    return f"yuv{chroma}p{'10le' if bits > 8 else ''}"

"""Sound files: any format, rate and channel layout as mono, block by block, past places that are damaged."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
import av.container
import numpy as np
from av.error import FFmpegError

from engine.errors import SpeechFormatError
from engine.files import ffmpeg_name

log = logging.getLogger(__name__)

# ITU-R BS.775-4, table 2, for one loudspeaker; channels that it lacks (heights, wide) count as surround. LFE is no part
# of a mix-down.
HALF_POWER, SURROUND = math.sqrt(0.5), 0.5
WEIGHTS = {"FC": 1.0, "FL": HALF_POWER, "FR": HALF_POWER, "DL": HALF_POWER, "DR": HALF_POWER, "LFE": 0.0, "LFE2": 0.0}
WEIGHTS |= {"NONE": 1.0}  # the file does not name its channels
UNNAMED = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # by their count
OPPOSITE = -0.5  # correlation below which a channel would cancel the mix
MIN_LOST_S, MAX_LOST_S = 0.02, 10.0  # gap between time stamps; below it rounding, above it another recording
TOLD_S = 0.1  # what is lost at the joint of two files
MAX_BAD_READS = 100  # in a row: the container cannot be read any further
OGG_PAGE, OGG_HEADER_BYTES, OGG_BEGINS = b"OggS", 27, 2  # RFC 3533, 6
STATED_SHARE = 0.03  # of a length, which some files only estimate
AGAIN = "export the sound again if words are missing"
EXPECTED = "expected speech as WAV, FLAC, MP3, M4A or Opus"


@dataclass
class _Channels:
    """Second moments of the channels of one layout, and the mix that follows from them."""

    names: list[str]
    count: int = 0
    peak: float = 0.0  # of the mix with the plain weights
    sums: np.ndarray = field(init=False)  # [C]
    products: np.ndarray = field(init=False)  # [C, C]

    def __post_init__(self) -> None:
        self.weights = np.array([WEIGHTS.get(name, SURROUND) for name in self.names])
        self.sums, self.products = np.zeros(len(self.names)), np.zeros((len(self.names),) * 2)

    def add(self, samples: np.ndarray) -> None:
        """Take samples [n, C]."""
        self.count += len(samples)
        self.sums += samples.sum(0, dtype=np.float64)
        self.products += samples.T @ samples
        self.peak = max(self.peak, float(np.abs(samples @ self.weights).max(initial=0.0)))

    def mix(self) -> tuple[np.ndarray, list[str]]:
        """Weights [C] that keep the level of the loudest channel, and the names of the channels that would cancel it.

        Channels join from the loudest on; one in opposite phase to those before it stays out.
        """
        mean = self.sums / max(1, self.count)
        covariance = self.products / max(1, self.count) - np.outer(mean, mean)
        power = np.diag(covariance)
        weights = self.weights if self.weights**2 @ power > 0 else np.ones(len(self.names))
        mix, opposite = np.zeros(len(weights)), []
        for channel in np.argsort(-(weights**2) * power, kind="stable"):
            level = math.sqrt(max(0.0, mix @ covariance @ mix) * power[channel])
            if level and (covariance[channel] @ mix) / level < OPPOSITE:
                opposite.append(self.names[channel] if self.names[channel] != "NONE" else f"{channel + 1}")
            else:
                mix[channel] = weights[channel]
        loudness = mix @ covariance @ mix
        if loudness <= 0:  # silence
            return mix / mix.sum(), opposite
        gain = math.sqrt(power[mix > 0].max() / loudness)
        if self.peak and not opposite:
            gain = min(gain, 1.0 / self.peak)
        return mix * gain, opposite


class SoundFile:
    """A sound stream of a file, the first by default. It is decoded twice, for the mix and for the samples, and never
    held.

    duration_s: of the sound that decodes.  start_s: the time stamp of its first sample.  remarks: flaws of the file.
    codec, layout: by FFmpeg's names.  rate_hz, layout: of its first samples.

    Raises SpeechFormatError for a file without sound that decodes.
    """

    def __init__(self, path: Path, track: int = 0):
        self.path, self._track = path, track
        self._source = _seekable(path)
        self._links = _ogg_links(path if isinstance(self._source, str) else self._source)
        if not isinstance(self._source, str):
            weakref.finalize(self, self._source.close)
        self._channels: dict[str, _Channels] = {}
        self.start_s: float | None = None
        self.duration_s = self._lost_s = self._stated_s = 0.0
        self._broke_off = False
        self.rate_hz, self.layout, self.codec = 0, "", ""
        for layout, rate_hz, samples in self._decode():
            self.rate_hz, self.layout = self.rate_hz or rate_hz, self.layout or _named(layout)
            self._channels[layout].add(samples)
            self.duration_s += len(samples) / rate_hz
        if not self._channels:
            raise SpeechFormatError(f"{path}: holds no sound that decodes; {EXPECTED}: export the speech again")
        self._mixes = {layout: channels.mix() for layout, channels in self._channels.items()}
        self.remarks = tuple(self._remarks())
        for remark in self.remarks:
            log.warning("%s: %s", path, remark)

    def blocks(self, rate_hz: int) -> Iterator[np.ndarray]:
        """The whole sound as mono float32 [N] at `rate_hz`, in pieces of any length."""
        mono = ((layout, hz, samples @ self._mixes[layout][0]) for layout, hz, samples in self._decode())
        for block in _converted((("mono", hz, samples[:, None]) for _, hz, samples in mono), rate_hz, "mono"):
            yield block[:, 0]

    def channels(self, rate_hz: int, layout: str) -> Iterator[np.ndarray]:
        """The whole sound as float32 [N, C] at `rate_hz` in a layout by FFmpeg's name, in pieces of any length."""
        return _converted(((_named(own), hz, samples) for own, hz, samples in self._decode()), rate_hz, layout)

    def _remarks(self) -> Iterator[str]:
        for _, opposite in self._mixes.values():
            if opposite:
                yield (
                    f"channel {', '.join(opposite)} is in opposite phase and would cancel the others: it is left out; "
                    "check the wiring of the recording"
                )
        missing_s = self._stated_s - self.duration_s
        if self._lost_s > TOLD_S:
            yield f"{self._lost_s:.2f} s of {self.duration_s:.2f} s are damaged and became silence; {AGAIN}"
        if self._broke_off:
            yield f"what follows after {self.duration_s:.2f} s cannot be read; {AGAIN}"
        elif missing_s > max(TOLD_S, STATED_SHARE * self._stated_s):
            yield f"{missing_s:.2f} s of the {self._stated_s:.2f} s that the file states are missing in it; {AGAIN}"

    def _decode(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Layout, rate in Hz and samples [n, C] float32 of each decoded frame; silence in place of what is lost."""
        self._lost_s, self._stated_s, setup, due_s = 0.0, 0.0, None, 0.0
        layout, rate_hz, width = "", 0, 1
        convert: av.AudioResampler | None = None
        try:
            for container in self._containers():
                self._stated_s += (container.duration or 0) / av.time_base
                self.codec = self.codec or container.streams.audio[self._track].codec_context.name
                for frame in self._frames(container):
                    gap_s = 0.0 if frame.time is None or convert is None else frame.time - due_s
                    if MIN_LOST_S < gap_s < MAX_LOST_S:
                        self._lost_s += gap_s
                        yield layout, rate_hz, np.zeros((round(gap_s * rate_hz), width), np.float32)
                    if setup != (setup := (frame.format.name, frame.layout.name, frame.sample_rate)):
                        # Interleaved: PyAV reads past the end of the list of planes from eight channels on.
                        convert = av.AudioResampler(format="flt", layout=frame.layout)
                        layout, rate_hz, width = frame.layout.name, frame.sample_rate, frame.layout.nb_channels
                        self._channels.setdefault(layout, _Channels(_names(frame.layout)))
                    assert convert is not None
                    start_s = due_s if frame.time is None else frame.time
                    self.start_s = start_s if self.start_s is None else self.start_s
                    due_s, frame.pts = start_s + frame.samples / rate_hz, None
                    for out in convert.resample(frame):
                        yield layout, rate_hz, _finite(out.to_ndarray().reshape(-1, width))
        except (FFmpegError, OSError, ValueError) as error:
            found = f"{width} channels cannot be mixed" if isinstance(error, ValueError) else "cannot be read as sound"
            raise SpeechFormatError(f"{self.path}: {found} ({error}); {EXPECTED}") from error

    def _frames(self, container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
        """All frames of the first sound stream; decoding goes on behind a place that does not read or decode."""
        bad = 0
        while bad < MAX_BAD_READS:
            try:
                for packet in container.demux(container.streams.audio[self._track]):
                    bad = 0
                    try:
                        frames = packet.decode()
                    except FFmpegError:
                        continue
                    yield from (frame for frame in frames if isinstance(frame, av.AudioFrame) and frame.samples)
                return
            except FFmpegError:
                bad += 1
        self._broke_off = True

    def _containers(self) -> Iterator[av.container.InputContainer]:
        """The file, or each link of a chained Ogg: FFmpeg does not read on where codec or channels change."""
        if len(self._links) < 2:
            with self._open(self._source) as container:
                yield container
            return
        with contextlib.ExitStack() as stack:
            source = self._source if not isinstance(self._source, str) else stack.enter_context(self.path.open("rb"))
            for start, stop in pairwise(self._links):
                with self._open(_Part(source, start, stop)) as container:
                    yield container

    def _open(self, source: str | BinaryIO | _Part) -> av.container.InputContainer:
        if not isinstance(source, str):
            source.seek(0)
        container = av.open(source, "r")
        if len(container.streams.audio) <= self._track:
            container.close()
            raise SpeechFormatError(f"{self.path}: holds no sound; {EXPECTED}")
        return container


class _Part:
    """The bytes from `start` to `stop` of a file, as a file for FFmpeg."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._start, self._stop, self._place = file, start, stop, start

    def read(self, size: int) -> bytes:
        self._file.seek(self._place)
        block = self._file.read(min(size, self._stop - self._place))
        self._place += len(block)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._place, os.SEEK_END: self._stop}[whence]
        self._place = min(max(self._start, origin + offset), self._stop)
        return self._place - self._start

    def tell(self) -> int:
        return self._place - self._start


def _ogg_links(source: Path | BinaryIO) -> list[int]:
    """Where the links of a chained Ogg begin, and its end; empty for a file that is no Ogg or has damaged pages."""
    if isinstance(source, Path) and not source.is_file():
        return []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        file.seek(0)
        links, place, beginning = [], 0, False
        while page := file.read(OGG_HEADER_BYTES):
            if len(page) < OGG_HEADER_BYTES or page[:4] != OGG_PAGE:
                return []
            if page[5] & OGG_BEGINS and not beginning:  # all streams of a link begin before its first other page
                links.append(place)
            beginning = bool(page[5] & OGG_BEGINS)
            place += OGG_HEADER_BYTES + page[26] + sum(file.read(page[26]))
            file.seek(place)
        return [*links, place]


def _seekable(path: Path) -> str | BinaryIO:
    """What FFmpeg opens; a pipe is copied, because the file is read twice."""
    if not path.exists() or path.is_file() or path.is_dir():
        return ffmpeg_name(path)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the SoundFile
    try:
        with path.open("rb") as pipe:
            while block := pipe.read(1 << 20):
                copy.write(block)
    except OSError as error:
        raise SpeechFormatError(f"{path}: cannot be read as sound ({error}); {EXPECTED}") from error
    return copy


def _names(layout: av.AudioLayout) -> list[str]:
    """FFmpeg's names of the channels; two that the file does not name are left and right."""
    names = [channel.name for channel in layout.channels]
    return ["FL", "FR"] if names == ["NONE", "NONE"] else names


def _named(layout: str) -> str:
    """The layout, or the usual one for as many channels where the file names none ("2 channels")."""
    count, _, unnamed = layout.partition(" channels")
    return layout if unnamed or not count.isdecimal() else UNNAMED.get(int(count), layout)


def _finite(samples: np.ndarray) -> np.ndarray:
    """Within [-1, 1] and without NaN."""
    finite: np.ndarray = np.clip(np.nan_to_num(samples), -1.0, 1.0)
    return finite


def _converted(pieces: Iterator[tuple[str, int, np.ndarray]], rate_hz: int, layout: str) -> Iterator[np.ndarray]:
    """Pieces (layout, rate in Hz, samples [n, C]) as float32 [N, C] of one rate and layout."""
    resampler, setup = None, None
    for source_layout, source_hz, samples in pieces:
        if resampler is None or setup != (source_layout, source_hz):
            yield from _resampled(resampler, None)
            resampler, setup = av.AudioResampler(format="flt", layout=layout, rate=rate_hz), (source_layout, source_hz)
        flat = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(flat, format="flt", layout=source_layout)
        frame.sample_rate = source_hz
        yield from _resampled(resampler, frame)
    yield from _resampled(resampler, None)


def _resampled(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    if resampler is not None:
        for out in resampler.resample(frame):
            yield out.to_ndarray().reshape(-1, out.layout.nb_channels)

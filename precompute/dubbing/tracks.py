"""What the output takes over from the source: other sound tracks, subtitles, chapters, attachments, metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.subtitles.stream import SubtitleStream

from precompute.dubbing.source import Remark
from precompute.dubbing.timing import Plan

if TYPE_CHECKING:
    from av.container.core import Chapter

# Facts of the file that they were written in.
FILE_FACTS = re.compile(
    r"(?i)(encoder|major_brand|minor_version|compatible_brands|vendor_id|duration|bps|number_of_\w+|_statistics_.*)(-\w+)?$"
)
PLAIN_TEXT = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}  # by container
IMAGES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
TEXT_HEADER = (  # that FFmpeg's encoder of mov_text wants
    b"[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,16\n"
)
LATE_S = 60  # behind the last picture, where sound may still go on; later, the time stamps have jumped
MAX_BAD_READS = 100  # in a row: the container cannot be read any further


def kept(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if not FILE_FACTS.match(name)}


class Tracks:
    """The streams of `source` that are copied into `output`, along the segments of a plan.

    remarks: what the output's container cannot hold.
    """

    def __init__(
        self, source: InputContainer, output: OutputContainer, plan: Plan, *, origin_s: Fraction, lead_s: Fraction
    ):
        """origin_s: the first picture's time in the source.  lead_s: in the output."""
        self._source, self._output, self._plan = source, output, plan
        self._origin_s, self._lead_s = origin_s, lead_s
        self._supported = output.supported_codecs
        self._copies: dict[int, tuple[Stream, Callable[[bytes], bytes] | None]] = {}
        self.remarks: list[Remark] = []

    def add(self, stream: Stream) -> None:
        """Make a place for `stream` in the output, or remark that there is none."""
        if stream.disposition & Disposition.attached_pic and self._output.format.name == "matroska":
            self._attach_cover(stream)
        elif isinstance(stream, av.stream.AttachmentStream):
            if self._output.format.name == "matroska":
                name = stream.name or stream.metadata.get("filename", "attachment")
                self._output.add_attachment(name, stream.mimetype or "application/octet-stream", bytes(stream.data))
            else:
                self._left_out(stream)
        elif stream.type in ("audio", "subtitle", "video") and stream.codec_context is not None:
            self._add_coded(stream)
        elif stream.type == "data" and "timecode" not in stream.metadata and not self._source.chapters():
            self._left_out(stream)  # a time code and chapters are written anew

    def _add_coded(self, stream: Stream) -> None:
        name, convert = stream.codec_context.name, None
        if stream.type != "subtitle" and all(segment.scale != 1 for segment in self._plan.segments):
            text = f"{stream.type} track {stream.index + 1} ({name}) does not stretch with the pictures and is left out"
            return self._remark("track-left-out", text)
        text = PLAIN_TEXT[self._output.format.name.split(",")[0]]
        if name in self._supported:
            copy = self._output.add_stream_from_template(stream, opaque=True)
        elif name in _TO_TEXT:
            copy, convert = self._text_stream(text), _text_converter(name, text)
        else:
            return self._left_out(stream)
        copy.disposition = stream.disposition
        copy.metadata.update(kept(stream.metadata))
        self._copies[stream.index] = copy, convert
        return None

    def _text_stream(self, codec: str) -> Stream:
        if codec != "mov_text":
            return self._output.add_mux_stream(codec)
        stream = cast(SubtitleStream, self._output.add_stream(codec))
        stream.codec_context.subtitle_header = TEXT_HEADER
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        return stream

    def _attach_cover(self, stream: Stream) -> None:
        file, mime = IMAGES.get(stream.codec_context.name, ("", ""))
        packet = next((packet for packet in self._source.demux(stream) if packet.size), None)
        self._source.seek(0)
        if not file or packet is None:
            self._left_out(stream)
        else:
            self._output.add_attachment(file, mime, bytes(packet))

    def _left_out(self, stream: Stream) -> None:
        name = stream.codec_context.name if stream.codec_context else stream.metadata.get("filename", "unknown format")
        container = self._output.format.name
        text = f"{stream.type} track {stream.index + 1} ({name}) has no place in {container} and is left out"
        self._remark("track-left-out", text)

    def chapters(self) -> list[Chapter]:
        """The source's chapters at the output's times."""
        chapters: list[Chapter] = []
        for chapter in self._source.chapters():
            base = chapter["time_base"] or Fraction(1, av.time_base)
            begin, end = self._time_of(chapter["start"] * base), self._time_of(chapter["end"] * base)
            if begin is not None:
                end_s = self._lead_s + self._plan.duration_s if end is None else end[0]
                start, stop = max(0, round(begin[0] / base)), round(end_s / base)
                if stop > start:
                    chapters.append({**chapter, "start": start, "end": stop, "time_base": base})
        return chapters

    def packets(self) -> Iterator[av.Packet]:
        """All packets of the copied streams, at the output's times."""
        if not self._copies:
            return
        streams = [self._source.streams[index] for index in self._copies]
        bad = 0
        while bad < MAX_BAD_READS:
            try:
                for packet in self._source.demux(*streams):
                    bad = 0
                    if packet.size and self._moved(packet):
                        copy, convert = self._copies[packet.stream_index]
                        placed = packet if convert is None else _converted(packet, convert)
                        if placed is not None:
                            placed.stream = copy
                            yield placed
                return
            except FFmpegError:
                bad += 1
        self._remark("cut-off", "the copied tracks cannot be read to their end")

    def _moved(self, packet: av.Packet) -> bool:
        """Set the packet's times to the output's; False where the output has no place for it."""
        if packet.stream.disposition & Disposition.attached_pic:
            packet.pts = packet.dts = 0
            return True
        base, stamp = packet.time_base, packet.pts if packet.pts is not None else packet.dts
        placed = self._time_of(stamp * base) if stamp is not None else None
        if stamp is None or placed is None:
            return False
        time_s, scale = placed
        if scale != 1 and packet.stream.type != "subtitle":
            return False  # sound and pictures do not stretch
        if time_s > self._lead_s + self._plan.duration_s + LATE_S:
            self._remark("time-jump", "other tracks end where their time stamps jump")
            return False
        moved = round(time_s / base) - stamp
        packet.pts = None if packet.pts is None else packet.pts + moved
        packet.dts = None if packet.dts is None else packet.dts + moved
        packet.duration = round((packet.duration or 0) * scale)
        return True

    def _remark(self, code: str, text: str) -> None:
        if Remark(code, text) not in self.remarks:
            self.remarks.append(Remark(code, text))

    def _time_of(self, time_s: Fraction) -> tuple[Fraction, Fraction] | None:
        """The output's time for a time of the source's container, and the scale there."""
        segment = self._plan.segment_of(time_s - self._origin_s)
        if segment is None:
            return None
        return self._lead_s + segment.time_of(time_s - self._origin_s), segment.scale


def _converted(packet: av.Packet, convert: Callable[[bytes], bytes]) -> av.Packet | None:
    """The packet with its text in another format; None without text."""
    payload = convert(bytes(packet))
    if not payload:
        return None
    copy = av.Packet(payload)
    copy.pts, copy.dts, copy.duration, copy.time_base = packet.pts, packet.pts, packet.duration, packet.time_base
    return copy


def _of_mov_text(data: bytes) -> str:
    return data[2 : 2 + int.from_bytes(data[:2], "big")].decode(errors="replace")


def _of_ass(data: bytes) -> str:
    text = data.decode(errors="replace").split(",", 8)[-1]  # behind the eight fields of Matroska's events
    return re.sub(r"\{[^}]*\}", "", text).replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")


def _of_marked(data: bytes) -> str:
    return re.sub(r"<[^>]*>|\{\\[^}]*\}", "", data.decode(errors="replace"))


_TO_TEXT = {"mov_text": _of_mov_text, "ass": _of_ass, "ssa": _of_ass}
_TO_TEXT |= dict.fromkeys(("subrip", "srt", "webvtt", "text"), _of_marked)


def _text_converter(source: str, target: str) -> Callable[[bytes], bytes]:
    """Packets of one text format to those of another, without fonts and colours."""

    def convert(data: bytes) -> bytes:
        text = _TO_TEXT[source](data).strip().encode()
        return len(text).to_bytes(2, "big") + text if text and target == "mov_text" else text

    return convert

"""The finished file: pictures, sound, and what the source has beside them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from engine.errors import SpeechFormatError
from engine.files import ffmpeg_name, replaced
from engine.sound_file import SoundFile
from precompute.dubbing.soundtrack import CHANNEL_BITS, LEAST_BITS, Original, Soundtrack
from precompute.dubbing.source import Display, Remark, Source
from precompute.dubbing.timing import TOLERANCE_S, Plan
from precompute.dubbing.tracks import Tracks, kept
from precompute.dubbing.writer import AS_STAMPED, Parts, packets
from precompute.video import open_video

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
COPIED = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "vorbis"}  # speech that is not encoded again
APPLE = "com.apple.quicktime."  # metadata that MP4 and MOV keep in another table
STEP = 250  # packets between two reports of progress


def finish(
    output: Path,
    source: Source,
    plan: Plan,
    parts: Parts,
    speeches: Sequence[SoundFile],
    *,
    mix_db: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Remark, ...]:
    """Write `output`, which appears when it is whole. Returns what it could not keep.

    speeches: they sound together.  mix_db: how far the original is lowered under them; None silences it.
    on_progress: called with the pictures written, and all.

    Raises OutputError where the file cannot be written.
    """
    kind, apple = FORMATS[output.suffix.lower()], False
    with replaced(output) as path, open_video(source.path) as original:
        apple = any(name.startswith(APPLE) for name in original.metadata)
        options = _options(kind, plan, apple=apple)
        with av.open(ffmpeg_name(path), "w", format=kind, container_options=options) as container:
            film = _Film(source, plan, parts, original, container)
            film.add_tracks(speeches, output.suffix.lower(), mix_db)
            film.write(on_progress)
    return (*parts.encoding.remarks, *film.remarks)


def _options(kind: str, plan: Plan, *, apple: bool) -> dict[str, str]:
    if kind not in ("mp4", "mov"):
        return AS_STAMPED
    # Edit lists count in ticks of the movie: in the pictures' own, they are exact.
    return {
        "movflags": "+faststart" + ("+use_metadata_tags" if apple else ""),
        "movie_timescale": str(plan.time_base.denominator),
    }


class _Film:
    """One output file while it is written."""

    def __init__(self, source: Source, plan: Plan, parts: Parts, original: InputContainer, container: OutputContainer):
        assert source.times is not None
        self._source, self._plan, self._parts = source, plan, parts
        self._original, self._container = original, container
        origin_s = source.times.origin_s
        start_s = Fraction(original.start_time or 0, av.time_base)
        # The output begins where the source does: with its first track, or at 0 if that one begins earlier.
        self._lead = round((origin_s - min(origin_s, max(start_s, Fraction(0)))) / plan.time_base)
        self._lead_s = self._lead * plan.time_base
        self._origin_s = origin_s
        self._tracks = Tracks(original, container, plan, origin_s=origin_s, lead_s=self._lead_s)
        self._lanes: list[Iterator[av.Packet]] = []
        self._remarks: list[Remark] = []

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return (*self._remarks, *self._tracks.remarks)

    def add_tracks(self, speeches: Sequence[SoundFile], suffix: str, mix_db: float | None) -> None:
        """Add all streams, in the source's order."""
        sounds = self._original.streams.audio
        replaced_sound = next((s for s in sounds if s.disposition & Disposition.default), sounds[0] if sounds else None)
        for stream in self._original.streams:
            if stream.index == self._source.stream_index:
                self._add_pictures(cast(av.VideoStream, stream))
            elif replaced_sound is not None and stream.index == replaced_sound.index:
                self._add_sound(speeches, suffix, mix_db, replaced_sound)
            else:
                self._tracks.add(stream)
        if replaced_sound is None:
            self._add_sound(speeches, suffix, mix_db, None)
        self._container.metadata.update(kept(self._original.metadata))
        self._container.set_chapters(self._tracks.chapters())

    def write(self, on_progress: Callable[[int, int], None]) -> None:
        total, done = len(self._plan), 0
        for number, packet in enumerate(heapq.merge(*self._lanes, self._tracks.packets(), key=_decoded_at)):
            done += isinstance(packet.stream, av.VideoStream)
            self._container.mux(packet)
            if number % STEP == 0:
                on_progress(min(done, total), total)
        on_progress(total, total)

    def _add_pictures(self, stream: av.VideoStream) -> None:
        encoding = self._parts.encoding
        with av.open(ffmpeg_name(self._parts.paths[0])) as part:
            pictures = self._container.add_stream_from_template(part.streams.video[0], opaque=True)
        pictures.time_base = self._plan.time_base
        encoding.describe(pictures.codec_context)
        if encoding.codec == "libx265" and self._container.format.name in ("mp4", "mov"):
            pictures.codec_context.codec_tag = "hvc1"  # Apple's players take no other
        pictures.disposition = stream.disposition
        pictures.metadata.update(kept(stream.metadata))
        matrix = self._source.first.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            pictures.set_display_matrix(np.frombuffer(cast(bytes, matrix), "<i4").tolist())
            self._check_orientation(self._source.display)
        self._lanes.append(packets(self._parts, pictures, self._lead))

    def _check_orientation(self, display: Display) -> None:
        rotated = display.transposed == (display.mirrored != display.flipped)
        if not rotated and self._container.format.name in ("matroska", "webm"):
            text = (
                "the video is mirrored by its display matrix, which only .mp4 and .mov keep; players do not mirror it"
            )
            self._remarks.append(Remark("mirrored", text))

    def _add_sound(
        self, speeches: Sequence[SoundFile], suffix: str, mix_db: float | None, stream: av.AudioStream | None
    ) -> None:
        needs_original = stream is not None and (mix_db is not None or not self._plan.whole)
        original = self._original_sound(stream) if needs_original and stream is not None else None
        if original is None and self._is_copied(speeches):
            self._lanes.append(self._copied(speeches[0]))
            return
        track = Soundtrack(speeches, self._plan, suffix=suffix, original=original, mix_db=mix_db, lead_s=self._lead_s)
        self._remarks += track.remarks
        sound = cast(av.AudioStream, self._container.add_stream(track.codec, rate=track.rate_hz))
        sound.layout = track.layout
        if track.codec == "flac":
            sound.format = "s32"  # 24 bits; fewer in the source cost nothing
        else:
            sound.bit_rate = max(LEAST_BITS, CHANNEL_BITS * track.channels)
        if original is not None and stream is not None:
            sound.metadata.update(kept(stream.metadata))
        sound.disposition = Disposition.default
        self._lanes.append(_encoded(track, sound))

    def _original_sound(self, stream: av.AudioStream) -> Original | None:
        number = [other.index for other in self._original.streams.audio].index(stream.index)
        try:
            sound = SoundFile(self._source.path, number)
        except SpeechFormatError as error:
            self._remarks.append(Remark("original-sound", f"the original's sound is left out: {error}"))
            return None
        start_s = Fraction(sound.start_s or 0.0).limit_denominator(1_000_000)
        return Original(sound, start_s - self._origin_s)

    def _is_copied(self, speeches: Sequence[SoundFile]) -> bool:
        """Whether the speech goes into the file as it is: alone, whole, sound, in a codec that the container holds."""
        speech = speeches[0]
        fits = speech.duration_s <= self._plan.duration_s + TOLERANCE_S and self._plan.passage_s[0] == 0
        known = speech.codec in COPIED & self._container.supported_codecs
        return (
            len(speeches) == 1 and known and fits and self._plan.whole and not speech.remarks and speech.path.is_file()
        )

    def _copied(self, speech: SoundFile) -> Iterator[av.Packet]:
        file = av.open(ffmpeg_name(speech.path))
        source = file.streams.audio[0]
        stream = self._container.add_stream_from_template(source, opaque=True)
        stream.disposition = Disposition.default
        stream.metadata.update(kept(source.metadata))
        later_s = self._lead_s - Fraction(speech.start_s or 0.0)

        def run() -> Iterator[av.Packet]:
            with file:
                for packet in file.demux(source):
                    if packet.pts is not None and packet.size:
                        later = round(later_s / packet.time_base)
                        packet.pts += later
                        packet.dts = packet.pts if packet.dts is None else packet.dts + later
                        packet.stream = stream
                        yield packet

        return run()


def _encoded(track: Soundtrack, stream: av.AudioStream) -> Iterator[av.Packet]:
    made = 0
    for block in track.blocks():
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=track.layout
        )
        frame.sample_rate, frame.time_base, frame.pts = track.rate_hz, Fraction(1, track.rate_hz), made
        made += len(block)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _decoded_at(packet: av.Packet) -> float:
    stamp = packet.dts if packet.dts is not None else packet.pts
    return float((stamp or 0) * packet.time_base)

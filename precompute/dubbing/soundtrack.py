"""The output's sound: the speech, and around it or under it the original's.

Where the passage is the whole video, the speech replaces the default track, at its own rate and layout. Before
and behind a shorter passage the original sounds on; with `--mix` it also sounds in the passage, lowered. Then rate and
layout are the original's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import numpy as np

from engine.sound_file import SoundFile
from precompute.dubbing.source import Remark
from precompute.dubbing.timing import Plan

LOSSLESS = ("flac", "alac")  # besides PCM
AAC_RATES_HZ = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
OPUS_RATE_HZ = USUAL_RATE_HZ = 48_000
CHANNEL_BITS, LEAST_BITS = 96_000, 128_000  # a second; 192 kbit/s for stereo
MOST_CHANNELS = 6  # that AAC and Opus code in a layout that every player knows
# The same loudspeakers by the names that AAC has for them.
PLAIN_LAYOUTS = {"5.1(side)": "5.1", "5.0(side)": "5.0", "quad(side)": "quad"}
FADE_S = 0.02  # of the original at the passage's edges
LIMIT = 0.98  # of full scale, for sums
BLOCK_S = 1


@dataclass(frozen=True)
class Original:
    """The source's default sound track, and the time of its first sample from the first picture."""

    sound: SoundFile
    at_s: Fraction


class Soundtrack:
    """The sound of a plan, block by block, in bounded memory.

    codec, rate_hz, layout: of the track.  remarks: what it could not keep.
    """

    def __init__(
        self,
        speeches: Sequence[SoundFile],
        plan: Plan,
        *,
        suffix: str,
        original: Original | None,
        mix_db: float | None = None,
        lead_s: Fraction = Fraction(0),
    ):
        """suffix: of the output's name.  original: None without sound in the source.  mix_db: how far the original is
        lowered in the passage; None silences it.  lead_s: of the output before the first picture."""
        self._speeches, self._plan, self._lead_s = speeches, plan, lead_s
        self._original = original if mix_db is not None or not plan.whole else None
        self._level = 0.0 if mix_db is None else 10 ** (-abs(mix_db) / 20)
        leader = self._original.sound if self._original else max(speeches, key=_richness)
        self.codec = _codec(suffix, [self._original.sound] if self._original else speeches)
        self.rate_hz, self.layout = _encodable(self.codec, leader)
        self.channels = av.AudioLayout(self.layout).nb_channels
        self.remarks: tuple[Remark, ...] = ()
        if self.channels < av.AudioLayout(leader.layout).nb_channels:
            text = f"the sound's layout {leader.layout} has no place in the output; it becomes {self.layout}"
            self.remarks = (Remark("sound-layout", text),)

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples [N, C] float32 in [-1, 1], from the output's beginning to its end."""
        tapes = [_Reel(self._spoken(speech), self.channels) for speech in self._speeches]
        if self._original:
            tapes.append(_Reel(self._around(self._original), self.channels))
        total = self._samples(self._lead_s + self._plan.duration_s)
        block = BLOCK_S * self.rate_hz
        sums = (
            np.sum([tape.read(min(block, total - first)) for tape in tapes], axis=0, dtype=np.float32)
            for first in range(0, total, block)
        )
        return sums if len(tapes) == 1 else _limited(sums, self.rate_hz, self.layout)

    def _spoken(self, speech: SoundFile) -> Iterator[np.ndarray]:
        begin_s, end_s = self._plan.passage_s
        # A voice of one channel keeps its level on two loudspeakers; FFmpeg would lower it by 3 dB.
        alone = speech.layout == "mono" and self.layout == "stereo"
        blocks = speech.channels(self.rate_hz, "mono" if alone else self.layout)
        reel = _Reel((block.repeat(2, axis=1) for block in blocks) if alone else blocks, self.channels)
        return reel.cut([(0, self._samples(self._lead_s + begin_s), self._samples(end_s - begin_s))])

    def _around(self, original: Original) -> Iterator[np.ndarray]:
        """The original, lowered in the passage. It falls silent where pictures repeat or become slower."""
        cuts = []
        for segment in self._plan.segments:
            if segment.scale != 1:
                continue
            begin_s = segment.begin_s or -self._lead_s
            late_s = max(Fraction(0), original.at_s - begin_s)
            first = self._samples(begin_s + late_s - original.at_s)
            place = self._samples(segment.time_of(begin_s + late_s) + self._lead_s)
            cuts.append((first, place, max(0, self._samples(segment.end_s - begin_s - late_s))))
        reel = _Reel(original.sound.channels(self.rate_hz, self.layout), self.channels)
        return self._lowered(reel.cut(cuts))

    def _lowered(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        begin, end = (self._samples(self._lead_s + time_s) for time_s in self._plan.passage_s)
        fade = self._samples(Fraction(FADE_S))
        at_begin, at_end = [begin, begin + fade], [max(begin + fade, end - fade), max(begin + fade, end)]
        opens = self._plan.passage_s[0] > 0
        closes = self._plan.passage_s[1] < self._plan.duration_s
        levels = [1.0 if opens else self._level, self._level, self._level, 1.0 if closes else self._level]
        made = 0
        for block in blocks:
            gains = np.interp(np.arange(made, made + len(block)), at_begin + at_end, levels)
            made += len(block)
            yield block * gains[:, None].astype(np.float32)

    def _samples(self, time_s: Fraction) -> int:
        return round(time_s * self.rate_hz)


class _Reel:
    """Samples [n, C] that come in blocks, read by the count that is wanted; silence behind the end."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int):
        self._blocks, self._rest = blocks, np.zeros((0, channels), np.float32)

    def read(self, count: int) -> np.ndarray:
        parts = []
        while count > 0:
            if not len(self._rest):
                self._rest = next(self._blocks, np.zeros((count, self._rest.shape[1]), np.float32))
            parts.append(self._rest[:count])
            self._rest, count = self._rest[count:], count - len(parts[-1])
        return np.concatenate(parts) if parts else self._rest[:0]

    def cut(self, cuts: Iterable[tuple[int, int, int]]) -> Iterator[np.ndarray]:
        """Stretches (first sample of the reel, place, count), in order, with silence between them."""
        played = made = 0
        for first, place, count in cuts:
            for _ in self._in_pieces(first - played):
                pass
            yield np.zeros((max(0, place - made), self._rest.shape[1]), np.float32)
            yield from self._in_pieces(count)
            played, made = first + count, place + count

    def _in_pieces(self, count: int) -> Iterator[np.ndarray]:
        while count > 0:
            piece = self.read(min(count, USUAL_RATE_HZ))
            count -= len(piece)
            yield piece


def _richness(sound: SoundFile) -> tuple[int, int]:
    return av.AudioLayout(sound.layout).nb_channels, sound.rate_hz


def _codec(suffix: str, sounds: Sequence[SoundFile]) -> str:
    if suffix == ".webm":
        return "libopus"
    lossless = all(sound.codec in LOSSLESS or sound.codec.startswith("pcm_") for sound in sounds)
    return "flac" if suffix == ".mkv" and lossless else "aac"


def _encodable(codec: str, sound: SoundFile) -> tuple[int, str]:
    """Rate in Hz and layout nearest to those of `sound`."""
    layout = PLAIN_LAYOUTS.get(sound.layout, sound.layout)
    if codec == "flac":
        return sound.rate_hz, sound.layout
    if av.AudioLayout(layout).nb_channels > MOST_CHANNELS:
        layout = "5.1"
    if codec == "libopus":
        return OPUS_RATE_HZ, layout
    return sound.rate_hz if sound.rate_hz in AAC_RATES_HZ else USUAL_RATE_HZ, layout


def _limited(blocks: Iterable[np.ndarray], rate_hz: int, layout: str) -> Iterator[np.ndarray]:
    """The blocks with peaks above LIMIT turned down smoothly."""
    graph = av.filter.Graph()
    source = graph.add("abuffer", f"sample_rate={rate_hz}:sample_fmt=flt:channel_layout={layout}:time_base=1/{rate_hz}")
    limiter = graph.add("alimiter", f"limit={LIMIT}:level=0:latency=1")
    graph.link_nodes(source, limiter, graph.add("aformat", "sample_fmts=flt"), graph.add("abuffersink")).configure()
    made = 0
    for block in itertools.chain(blocks, [None]):
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), made
            made += len(block)
        graph.push(frame)
        while True:
            try:
                out = graph.pull()
            except (BlockingIOError, av.error.EOFError):
                break
            assert isinstance(out, av.AudioFrame)
            yield out.to_ndarray().reshape(-1, out.layout.nb_channels)

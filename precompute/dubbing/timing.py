"""Which picture of the source is shown when, in each of the modes of length, and where the speech lies.

Times count from the first picture. The passage, from `--from` to `--to`, is where the new speech sounds and pictures
may change. Before and behind it, pictures and sound are those of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np

from engine.errors import CorruptVideoError, SettingError
from precompute.dubbing.source import Picture, Source, Times

Length = Literal["video", "cut", "loop", "bounce", "stretch"]

TOLERANCE_S = 0.1  # by which speech may be longer than its room: encoders pad their last block
MOST_STRETCH = 2  # times faster or slower; beyond, movement looks wrong
FINE_TICKS = 90_000  # a second, for times that are scaled
OPEN_S = Fraction(10**9)  # the end of the last segment: sound may be longer than the pictures


@dataclass(frozen=True)
class Shown:
    """One picture of the output."""

    source: int  # number in the source
    time_s: Fraction
    duration_s: Fraction


@dataclass(frozen=True)
class Segment:
    """A stretch of the source that runs forwards in the output, `scale` times as long, from `at_s` on. Sound, subtitles
    and chapters follow it. The last one ends at OPEN_S where the output shows the source's last picture."""

    begin_s: Fraction
    end_s: Fraction
    at_s: Fraction
    scale: Fraction = Fraction(1)

    def time_of(self, source_s: Fraction) -> Fraction:
        return self.at_s + (source_s - self.begin_s) * self.scale


@dataclass(frozen=True)
class Plan:
    """The output's pictures, in ticks of `time_base`.

    passage_s: where the passage lies in the output; the speech begins at its beginning.
    """

    time_base: Fraction
    sources: np.ndarray  # [N] int32
    ticks: np.ndarray  # [N] int64
    end: int  # tick at which the last picture ends
    passage_s: tuple[Fraction, Fraction]
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def duration_s(self) -> Fraction:
        return self.end * self.time_base

    def segment_of(self, source_s: Fraction) -> Segment | None:
        """The segment that a time of the source belongs to; times before the first picture belong to the first one."""
        return next(
            (
                segment
                for segment in self.segments
                if source_s < segment.end_s and (source_s >= segment.begin_s or segment is self.segments[0])
            ),
            None,
        )

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """When each picture begins, and how long it is shown: [N] float64 each."""
        ticks = np.append(self.ticks, self.end) * float(self.time_base)
        return ticks[:-1], np.diff(ticks)

    @property
    def whole(self) -> bool:
        """Whether the passage is the whole output."""
        return self.passage_s[0] == 0 and self.passage_s[1] > int(self.ticks[-1]) * self.time_base

    def shown(self, start: int = 0, stop: int | None = None) -> Iterator[Shown]:
        ticks = np.append(self.ticks[start:stop], self.ticks[stop] if stop and stop < len(self) else self.end)
        for source, (tick, following) in zip(self.sources[start:stop].tolist(), pairwise(ticks.tolist()), strict=True):
            yield Shown(source, tick * self.time_base, (following - tick) * self.time_base)

    def pictures(self, source: Source, start: int = 0, stop: int | None = None) -> Iterator[tuple[Shown, Picture]]:
        """The output's pictures from `start` until before `stop`, each with the source's picture."""
        shown = self.shown(start, stop)
        for first, last in _runs(self.sources[start:stop]):
            forwards = first <= last
            pictures = source.pictures(first, last + 1) if forwards else source.backwards(last, first + 1)
            count = 0
            for picture in pictures:
                count += 1
                yield next(shown), picture
            if count != abs(last - first) + 1:
                raise CorruptVideoError(f"{source.path}: has fewer pictures than before; it was changed meanwhile")


def check(
    length: Length, *, video_s: float, speech_s: float, from_s: float | None = None, to_s: float | None = None
) -> None:
    """Raises SettingError where the speech does not fit, naming both lengths and the modes in which it does."""
    begin_s, end_s = from_s or 0.0, min(video_s, video_s if to_s is None else to_s)
    if not 0 <= begin_s < video_s:
        raise SettingError(f"--from {begin_s:g}: the video lasts {video_s:.2f} s; choose a time in it")
    if end_s <= begin_s:
        raise SettingError(f"--to {end_s:g}: comes before --from {begin_s:g}; choose a later time")
    room_s = end_s - begin_s
    stretches = room_s <= MOST_STRETCH * speech_s and speech_s <= MOST_STRETCH * room_s
    facts = (
        f"the speech lasts {speech_s:.2f} s, and the video has {room_s:.2f} s for it "
        f"(from {begin_s:.2f} to {end_s:.2f} s)"
    )
    if length == "video" and speech_s > room_s + TOLERANCE_S:
        raise SettingError(
            f"{facts}; shorten the speech, or choose --length cut (the speech ends with the video), loop or bounce "
            f"(the pictures repeat){', or stretch (the video becomes slower)' if stretches else ''}"
        )
    if length == "stretch" and not stretches:
        others = "cut, loop or bounce" if speech_s > room_s else "video or cut"
        raise SettingError(
            f"{facts}; the video can become at most {MOST_STRETCH} times slower or faster: choose --length {others}"
        )


def plan(
    times: Times, length: Length, *, speech_s: float, from_s: float | None = None, to_s: float | None = None
) -> Plan:
    """The output's pictures.

    video: the whole video.  cut: until the shorter of speech and video ends.  loop, bounce: the passage's pictures
    repeat, forwards or there and back, until the speech ends; a shorter speech behaves as in `video`.  stretch: the
    passage lasts as long as the speech.

    Raises SettingError where the speech does not fit.
    """
    check(length, video_s=float(times.duration_s), speech_s=speech_s, from_s=from_s, to_s=to_s)
    whole = _Whole(times, _exact(from_s or 0), times.duration_s if to_s is None else _exact(to_s))
    speech = _exact(speech_s)
    if length == "stretch":
        return whole.stretched(speech)
    if length == "cut":
        return whole.cut(speech)
    if length in ("loop", "bounce") and speech > whole.end_s - whole.begin_s:
        return whole.repeated(speech, there_and_back=length == "bounce")
    return whole.unchanged()


def _exact(seconds: float | Fraction) -> Fraction:
    return Fraction(seconds).limit_denominator(1_000_000)


class _Whole:
    """All pictures of the source, and the passage in it: times begin_s to end_s, numbers first to before behind."""

    def __init__(self, times: Times, begin_s: Fraction, end_s: Fraction):
        self.times, self.begin_s, self.end_s = times, begin_s, min(end_s, times.duration_s)
        self.edges = np.append(times.ticks, times.end)
        self.first, self.behind = self._number_at(begin_s), self._number_at(self.end_s)
        self.first = min(self.first, len(times) - 1)
        self.behind = max(self.behind, self.first + 1)

    def _number_at(self, time_s: Fraction) -> int:
        """The number of the first picture that begins at `time_s` or later."""
        tick = -(-time_s // self.times.time_base)
        return int(np.searchsorted(self.times.ticks, int(tick)))

    def unchanged(self) -> Plan:
        everything = (Segment(Fraction(0), OPEN_S, Fraction(0)),)
        return self._plan(np.arange(len(self.times)), self.times.ticks, self.times.end, self.end_s, everything)

    def cut(self, speech: Fraction) -> Plan:
        end_s = min(self.begin_s + speech, self.end_s)
        stop = max(self._number_at(end_s), self.first + 1)
        end = int(self.edges[stop])
        segments = (Segment(Fraction(0), end * self.times.time_base, Fraction(0)),)
        return self._plan(np.arange(stop), self.times.ticks[:stop], end, end_s, segments)

    def repeated(self, speech: Fraction, *, there_and_back: bool) -> Plan:
        there = np.arange(self.first, self.behind)
        period = np.concatenate([there, there[-2:0:-1]]) if there_and_back else there
        durations = np.diff(self.edges)[period]
        wanted = int(-(-(self.begin_s + speech) // self.times.time_base)) - int(self.edges[self.first])
        count = -(-wanted // int(durations.sum()))
        passed = np.cumsum(np.tile(durations, count))
        stop = int(np.searchsorted(passed, wanted)) + 1
        begins = int(self.edges[self.first]) + np.append(0, passed[: stop - 1])
        joint = int(self.edges[self.first] + passed[stop - 1])  # where the pictures behind the passage follow
        later = joint - int(self.edges[self.behind])
        behind = np.arange(self.behind, len(self.times))
        sources = np.concatenate([np.arange(self.first), np.tile(period, count)[:stop], behind])
        ticks = np.concatenate([self.times.ticks[: self.first], begins, self.times.ticks[self.behind :] + later])
        base = self.times.time_base
        run_s = int(self.edges[self.behind]) * base
        segments = (
            Segment(Fraction(0), run_s, Fraction(0)),
            Segment(run_s, OPEN_S, joint * base),
        )
        return self._plan(sources, ticks, self.times.end + later, joint * base, segments)

    def stretched(self, speech: Fraction) -> Plan:
        until_s = self.end_s if self.end_s < self.times.duration_s else OPEN_S
        finer = max(1, FINE_TICKS // self.times.time_base.denominator)
        scale = speech / (self.end_s - self.begin_s)
        base = self.times.time_base / finer
        begin, end = (int(time_s / base) for time_s in (self.begin_s, self.end_s))
        ticks = self.edges * finer
        inside = (ticks >= begin) & (ticks < end)
        joint = begin + round((end - begin) * scale)
        scaled = begin + np.rint((ticks - begin) * float(scale)).astype(np.int64)
        ticks = np.where(inside, scaled, np.where(ticks >= end, ticks - end + joint, ticks))
        segments = (
            Segment(Fraction(0), self.begin_s, Fraction(0)),
            Segment(self.begin_s, until_s, self.begin_s, scale),
            Segment(until_s, OPEN_S, joint * base),
        )
        made = self._plan(np.arange(len(self.times)), ticks[:-1], int(ticks[-1]), joint * base, segments)
        return Plan(base, made.sources, made.ticks, made.end, made.passage_s, made.segments)

    def _plan(
        self, sources: np.ndarray, ticks: np.ndarray, end: int, until_s: Fraction, segments: tuple[Segment, ...]
    ) -> Plan:
        kept = tuple(segment for segment in segments if segment.end_s > segment.begin_s)
        return Plan(self.times.time_base, sources.astype(np.int32), ticks, end, (self.begin_s, until_s), kept)


def _runs(sources: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last number of each stretch that goes by steps of 1 or of -1."""
    begin = 0
    numbers = sources.tolist()
    while begin < len(numbers):
        end, step = begin + 1, 0
        while end < len(numbers) and (numbers[end] - numbers[end - 1]) in ((step,) if step else (1, -1)):
            step = numbers[end] - numbers[end - 1]
            end += 1
        yield numbers[begin], numbers[end - 1]
        begin = end

"""Who speaks which speech, and what happens to each of their pictures.

The output's pictures are numbered k = 0 … K - 1; each shows a picture of the source at a time of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.media import FPS
from precompute.dubbing.mouths import Change, change, talks, usable
from precompute.dubbing.people import Person


@dataclass(frozen=True)
class Passage:
    """A run of a person as it is shown once, in one direction: pictures k = first, first + 1, … of the output, their
    places t [n] in the run, and what happens to them."""

    run: int
    first: int
    t: np.ndarray
    change: Change


@dataclass(frozen=True)
class Part:
    """One person's part: the key of the speech, the persona as in an avatar, the passages, and for each picture of the
    output the number of its passage, -1 where the person is not seen."""

    person: Person
    speech: str
    persona: Tensor
    passages: list[Passage]
    at: np.ndarray


def speech_at(share: np.ndarray, time_s: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """How far new lips follow the speech at pictures shown from time_s [K] after its start; share [T] at 25 Hz."""
    if not len(share):
        return np.zeros(len(time_s))
    place = (time_s + duration_s / 2) * FPS - 0.5
    return np.interp(place, np.arange(len(share)), share, left=0.0, right=0.0)


def part(
    person: Person,
    key: str,
    persona: Tensor,
    source: np.ndarray,
    speech: np.ndarray,
    allowed: np.ndarray,
    rate_hz: float,
) -> Part:
    """The part of a person.

    source [K]: the picture of the source that each picture of the output shows.  speech [K], allowed [K]: as in
    `mouths.change`.
    """
    reasons = [usable(person, run) for run in person.runs]
    talking = [talks(run, rate_hz) for run in person.runs]
    run_of = np.full(int(source.max(initial=0)) + 1, -1)
    for r, run in enumerate(person.runs):
        run_of[run.start : run.stop] = r
    runs = run_of[source]
    step = np.diff(source)
    turned = step * np.r_[step[:1], step[:-1]] == -1  # from forwards to backwards, or back
    joints = np.flatnonzero((np.diff(runs) != 0) | (np.abs(step) > 1) | turned) + 1
    passages: list[Passage] = []
    at = np.full(len(source), -1)
    for places in np.split(np.arange(len(source)), joints):
        r = int(runs[places[0]]) if len(places) else -1
        if r < 0:
            continue
        t = source[places] - person.runs[r].start
        at[places] = len(passages)
        what = change(reasons[r][t], talking[r][t], speech[places], allowed[places], rate_hz)
        passages.append(Passage(r, int(places[0]), t, what))
    return Part(person, key, persona, passages, at)


def active(parts: Sequence[Part], k: int) -> list[tuple[Part, Passage, int]]:
    """The parts whose mouth changes in picture k, each with its passage and the place in it."""
    found = []
    for one in parts:
        if one.at[k] >= 0:
            passage = one.passages[one.at[k]]
            place = k - passage.first
            if passage.change.pixels[place] > 0:
                found.append((one, passage, place))
    return found

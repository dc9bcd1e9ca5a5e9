"""The pace of the pictures: the best that the device keeps up with, and never back and forth."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config import LEVELS
from engine.live.quality import PATIENCE_S, Pace, QualityController
from engine.media import FPS

SHARES = {"best": 1.0, "best-half": 0.6, "fast": 0.5, "fast-half": 0.35}  # of the device, for one session


class Device:
    """Paints so much in time as its load allows; speed: 1 as measured at the start."""

    def __init__(self, levels=LEVELS, shares=SHARES, speed=1.0):
        self.shares, self.speed, self.now_s, self.paces = shares, speed, 0.0, []
        self.quality = QualityController(levels, self.load)

    def load(self, pace):
        return self.shares[pace.level] / pace.stride / self.speed

    def speak(self, seconds):
        """Frames of speech, of which the pace's share is fresh, less those that an overloaded device misses."""
        owed = 0.0
        for _ in range(round(seconds * FPS)):
            self.now_s += 1 / FPS
            pace = self.quality.pace
            owed += min(1.0, 1 / self.load(pace)) / pace.stride
            self.quality.observe(self.now_s, owed >= 1)
            owed -= owed >= 1
            if not self.paces or self.paces[-1] != pace:
                self.paces.append(pace)
        return self.quality.pace


@pytest.mark.parametrize(
    ("speed", "level"), [(2.0, "best"), (1.25, "best"), (1.0, "best-half"), (0.7, "fast"), (0.5, "fast-half")]
)
def test_the_best_level_with_room_is_chosen_from_the_times_at_the_start(speed, level):
    device = Device(speed=speed)
    assert device.quality.pace == Pace(level)
    assert f"({level})" in device.quality.reason and "%" in device.quality.reason
    assert device.speak(120) == Pace(level) and len(device.paces) == 1


def test_a_level_that_costs_no_less_than_a_better_one_is_never_chosen():
    device = Device(shares={"best": 1.4, "best-half": 1.0, "fast": 1.1, "fast-half": 0.7})
    assert device.quality.pace.level == "fast-half"
    device.speed = 2.0
    device.speak(300)
    assert [pace.level for pace in device.paces] == ["fast-half", "best-half", "best"]
    small_face = Device(shares={"best": 1.0, "best-half": 0.9, "fast": 1.0, "fast-half": 0.9})
    small_face.speed = 0.5
    small_face.speak(60)
    assert {pace.level for pace in small_face.paces} <= {"best", "best-half"}


def test_overload_brings_the_next_level_that_fits_and_one_slow_second_does_not():
    device = Device(speed=2.0)
    device.speak(10)
    device.speed = 0.1
    device.speak(0.8)
    device.speed = 2.0
    assert device.speak(20) == Pace("best")
    device.speed = 0.8
    assert device.speak(5) == Pace("best-half")
    assert "in time at best" in device.quality.reason


def test_a_better_level_returns_when_there_is_room_for_a_while():
    device = Device(speed=2.0)
    device.speed = 0.8
    device.speak(10)
    device.speed = 2.0
    assert device.speak(PATIENCE_S - 2) == Pace("best-half")
    assert device.speak(4) == Pace("best")


def test_attempts_that_fail_become_rarer_and_rarer():
    """The device looks as if it had room, and has none."""
    device = Device(speed=2.0)
    honest = device.load
    device.load = lambda pace: honest(pace) * (3.0 if pace.level == "best" else 1.0)
    ends = []
    for _ in range(4):
        device.speak(600)
        ends.append(len(device.paces))
    assert ends[0] >= 3, "it tried"
    assert np.diff(ends).max() <= 2 and ends[-1] <= 20


@pytest.mark.parametrize(("speed", "stride"), [(1.0, 1), (0.6, 1), (0.35, 2), (0.2, 3), (0.01, 5)])
def test_a_fixed_level_keeps_its_name_and_shows_every_second_or_third_picture_under_overload(speed, stride):
    device = Device(("fast",), speed=1.0)
    device.speed = speed
    assert device.speak(30) == Pace("fast", stride)
    assert {pace.level for pace in device.paces} == {"fast"}


def test_silence_between_sentences_is_no_overload():
    device = Device(speed=1.0)
    for _ in range(20):
        device.speak(0.6)
        device.now_s += 5.0
    assert len(device.paces) == 1

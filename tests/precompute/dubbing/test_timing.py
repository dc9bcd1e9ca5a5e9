"""Which picture is shown when, in every mode of length."""

from __future__ import annotations

import weakref
from fractions import Fraction

import numpy as np
import pytest
from drawings import times_of

from engine.errors import CorruptVideoError, SettingError
from precompute.dubbing.source import Source, Times
from precompute.dubbing.timing import OPEN_S, plan


def sources(made):
    return made.sources.tolist()


@pytest.mark.parametrize("fps", [Fraction(24_000, 1001), Fraction(30_000, 1001), 30, 50, 60])
def test_the_whole_video_is_shown_at_its_own_times(fps):
    times = times_of(100, fps)
    made = plan(times, "video", speech_s=1.0)
    shown = list(made.shown())
    assert sources(made) == [picture.source for picture in shown] == list(range(100))
    assert [picture.time_s * 16_000 for picture in shown] == times.ticks.tolist()
    assert shown[-1].time_s + shown[-1].duration_s == made.duration_s == times.duration_s
    assert made.whole and made.passage_s == (0, times.duration_s)


def test_shown_begins_and_ends_anywhere():
    made = plan(times_of(20), "video", speech_s=0.1)
    assert list(made.shown(7, 12)) == list(made.shown())[7:12]
    assert list(made.shown(18)) == list(made.shown())[18:]


def test_the_passage_lies_between_from_and_to():
    made = plan(times_of(100), "video", speech_s=1.0, from_s=1.3, to_s=2.5)
    assert made.passage_s == (Fraction(13, 10), Fraction(5, 2)) and not made.whole
    assert sources(made) == list(range(100))
    assert plan(times_of(100), "video", speech_s=1.0, to_s=99).passage_s[1] == 4


@pytest.mark.parametrize(("speech_s", "from_s", "to_s", "count"), [
    (1.0, None, None, 25), (1.0, 1.0, None, 50), (9.0, None, None, 100), (9.0, 1.0, 2.0, 50), (1.01, None, None, 26),
])  # fmt: skip
def test_cut_ends_with_the_shorter_of_speech_and_video(speech_s, from_s, to_s, count):
    made = plan(times_of(100), "cut", speech_s=speech_s, from_s=from_s, to_s=to_s)
    assert sources(made) == list(range(count)) and made.duration_s == Fraction(count, 25)
    assert made.passage_s[1] <= made.duration_s
    assert made.segment_of(made.duration_s) is None


def test_loop_repeats_forwards_until_the_speech_ends():
    made = plan(times_of(10), "loop", speech_s=0.95)
    assert sources(made) == [*range(10), *range(10), *range(4)]
    assert np.unique(np.diff(made.ticks)).tolist() == [640]
    assert made.duration_s == Fraction(24, 25) and made.whole


def test_bounce_goes_there_and_back():
    made = plan(times_of(5), "bounce", speech_s=0.6)
    assert sources(made) == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2]
    assert np.unique(np.diff(made.ticks)).tolist() == [640]


@pytest.mark.parametrize("length", ["loop", "bounce"])
def test_a_shorter_speech_repeats_nothing(length):
    assert sources(plan(times_of(10), length, speech_s=0.3)) == list(range(10))


def test_only_the_passage_repeats_and_the_rest_follows():
    times = times_of(20)
    made = plan(times, "loop", speech_s=0.5, from_s=0.2, to_s=0.4)
    assert sources(made) == [*range(10), *range(5, 10), 5, 6, 7, *range(10, 20)]
    assert np.unique(np.diff(made.ticks)).tolist() == [640]
    assert made.passage_s == (Fraction(1, 5), Fraction(18, 25))
    first, rest = made.segments
    assert (first.begin_s, first.end_s, first.at_s) == (0, Fraction(2, 5), 0)
    assert (rest.begin_s, rest.end_s, rest.at_s) == (Fraction(2, 5), OPEN_S, Fraction(18, 25))


def test_pictures_of_a_variable_rate_repeat_with_their_own_durations():
    made = plan(times_of(4, ticks=[0, 640, 1000, 3000]), "bounce", speech_s=0.5)
    assert sources(made)[:8] == [0, 1, 2, 3, 2, 1, 0, 1]
    assert np.diff(made.ticks)[:7].tolist() == [640, 360, 2000, 640, 2000, 360, 640]


@pytest.mark.parametrize(("speech_s", "scale"), [(5.0, Fraction(5, 4)), (3.0, Fraction(3, 4))])
def test_stretch_makes_the_passage_as_long_as_the_speech(speech_s, scale):
    made = plan(times_of(100), "stretch", speech_s=speech_s)
    assert sources(made) == list(range(100)) and made.duration_s == Fraction(speech_s)
    times_s = made.ticks * float(made.time_base)
    assert np.abs(times_s - np.arange(100) / 25 * float(scale)).max() < 1e-4


def test_stretch_leaves_the_rest_at_its_rate():
    made = plan(times_of(100), "stretch", speech_s=2.0, from_s=1.0, to_s=2.0)
    gaps_s = np.diff(made.ticks) * float(made.time_base)
    assert gaps_s[:25] == pytest.approx(0.04, abs=1e-4) and gaps_s[50:] == pytest.approx(0.04, abs=1e-4)
    assert gaps_s[25:50] == pytest.approx(0.08, abs=1e-4) and made.duration_s == 5
    assert [segment.scale for segment in made.segments] == [1, 2, 1]
    assert made.segments[1].time_of(Fraction(3, 2)) == 2


def test_stretch_of_coarse_times_is_even():
    times = Times(Fraction(1, 25), np.arange(50), 50, np.arange(50), np.zeros(50, bool))
    made = plan(times, "stretch", speech_s=2.2)
    assert np.ptp(np.diff(made.ticks) * float(made.time_base)) < 1e-4


@pytest.mark.parametrize(("length", "speech_s", "from_s", "to_s", "words"), [
    ("video", 4.2, None, None, ["4.20 s", "4.00 s", "cut", "loop", "bounce", "stretch"]),
    ("video", 2.0, 2.5, None, ["2.00 s", "1.50 s", "from 2.50 to 4.00"]),
    ("video", 2.0, 0.5, 1.5, ["2.00 s", "1.00 s"]),
    ("stretch", 9.0, None, None, ["9.00 s", "4.00 s", "2 times", "cut, loop or bounce"]),
    ("stretch", 1.0, None, None, ["1.00 s", "4.00 s", "video or cut"]),
    ("video", 1.0, 4.0, None, ["--from 4", "4.00 s"]),
    ("video", 1.0, -1.0, None, ["--from -1"]),
    ("cut", 1.0, 2.0, 1.0, ["--to 1", "--from 2"]),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_lengths_and_what_would(length, speech_s, from_s, to_s, words):
    with pytest.raises(SettingError) as refused:
        plan(times_of(100), length, speech_s=speech_s, from_s=from_s, to_s=to_s)
    assert all(word in str(refused.value) for word in words)


def test_a_padded_last_block_of_speech_is_not_refused():
    assert len(plan(times_of(100), "video", speech_s=4.05)) == 100
    with pytest.raises(SettingError) as refused:
        plan(times_of(100), "video", speech_s=9.0)
    assert "stretch" not in str(refused.value)  # more than twice as long


def test_pictures_come_in_the_order_of_the_plan(tmp_path, make_video):
    source = Source(make_video(tmp_path / "v.mp4", 12, options={"g": "5"}))
    list(source.pictures())
    for length in ("loop", "bounce"):
        made = plan(source.times, length, speech_s=1.2)
        pairs = list(made.pictures(source))
        assert [picture.number for _, picture in pairs] == sources(made)
        assert [shown for shown, _ in pairs] == list(made.shown())
        assert [picture.number for _, picture in made.pictures(source, 17, 26)] == sources(made)[17:26]


def test_a_video_that_became_shorter_is_noticed(tmp_path, make_video):
    source = Source(make_video(tmp_path / "v.mp4", 12))
    list(source.pictures())
    made = plan(source.times, "video", speech_s=0.1)
    make_video(tmp_path / "v.mp4", 8)
    with pytest.raises(CorruptVideoError, match="changed"):
        list(made.pictures(source))


def test_few_pictures_are_held_at_once_there_and_back(tmp_path, make_video, monkeypatch):
    source = Source(make_video(tmp_path / "v.mp4", 100, options={"g": "25", "preset": "ultrafast"}))
    list(source.pictures())
    monkeypatch.setattr("precompute.dubbing.source.HELD_BYTES", 12 * sum(p.buffer_size for p in source.first.planes))
    seen, most = [], 0
    for _, picture in plan(source.times, "bounce", speech_s=8.0).pictures(source):
        seen = [*(reference for reference in seen if reference() is not None), weakref.ref(picture)]
        most = max(most, len(seen))
    assert 12 <= most <= 15

"""What `personastream dub` shows: the summary on the standard output, everything else on the standard error."""

from __future__ import annotations

import os

import pytest

from engine.child import WorkProgress, WorkRemark
from engine.commands.dub_display import Display, time_left

REPORT = {
    "output": "out.mp4",
    "seconds": 4.0,
    "pictures": 100,
    "changed": 60,
    "closed": 7,
    "shots": [{"kept": {"turned": 30, "covered": 1}}, {"kept": {"turned": 9}}],
}


def test_the_summary_counts_what_was_changed_and_what_was_kept_by_reason(capsys):
    with Display() as display:
        display.show(WorkProgress("faces", 3, 10, 30.0))
        display.show(WorkRemark("cut", "a [red] cut", 1.5))
        display.finish(REPORT)
    shown = capsys.readouterr()
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0].startswith("out.mp4: 4.0 s of video in ")
    assert lines[1:4] == ["changed 60 of 100 pictures", "kept: turned 39 pictures", "kept: covered 1 pictures"]
    assert lines[4].startswith("mouth closed 7 pictures")
    assert "! a [red] cut (at 1.50 s)" in shown.err and "Looking for faces" in shown.err and "30 s left" in shown.err


def test_the_report_of_an_avatar_is_one_line_whatever_the_name_of_its_file(capsys):
    with Display() as display:
        display.finish({"output": os.fsdecode(b"\xff.mp4"), "seconds": 0.52, "pictures": 13})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("\\xff.mp4: 0.5 s of video in ")


@pytest.mark.parametrize(
    ("left_s", "shown"), [(None, ""), (0.2, "0 s left"), (89.0, "89 s left"), (200.0, "about 3 min left")]
)
def test_the_time_that_is_left_is_told_in_minutes_where_it_is_long(left_s, shown):
    assert time_left(left_s) == shown

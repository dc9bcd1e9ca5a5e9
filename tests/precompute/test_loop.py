"""The loop is as long as a matched joint allows, and turns round where there is none."""

from __future__ import annotations

import numpy as np

from precompute.loop import find_loop


def track(shift_px, frames=400):
    """Pose and crop of a head of usual size whose crop moves by shift_px [T]."""
    pose = np.tile([0, 0, 0, 0.3846, 0.5, 0.4], (frames, 1)).astype(np.float32)
    crop = np.tile([300, 100, 260], (frames, 1)).astype(np.int32)
    pose[:, 4] += np.asarray(shift_px) / 260
    return pose, crop


def still_picture(frames=400):
    return np.full((frames, 36, 64), 90, np.uint8)


def test_a_periodic_head_loops_at_least_over_its_whole_periods_and_the_joint_is_not_seen():
    shift = 30 * np.sin(2 * np.pi * np.arange(400) / 120)
    loop = find_loop(*track(shift), still_picture())
    assert loop.mode == "wrap"
    assert loop.stop - loop.start >= 360
    speed = np.gradient(shift)
    face_px = 0.3846 * 260 * 1.4
    assert abs(shift[loop.stop] - shift[loop.start]) < 0.015 * face_px
    assert abs(speed[loop.stop] - speed[loop.start]) < 0.006 * face_px


def test_position_alone_does_not_make_a_joint():
    """A triangle wave passes every place twice, in opposite directions; equal directions are 160 frames apart."""
    time = np.arange(300)
    shift = 60 * np.abs((time / 80) % 2 - 1)
    loop = find_loop(*track(shift, 300), still_picture(300))
    assert loop.mode == "wrap"
    assert abs((loop.stop - loop.start) - 160) <= 4


def test_a_head_that_only_drifts_turns_round():
    loop = find_loop(*track(np.arange(400) * 0.5), still_picture())
    assert (loop.mode, loop.start, loop.stop) == ("ping_pong", 0, 400)


def test_a_joint_must_match_in_the_whole_picture_too():
    time = np.arange(400)
    picture = still_picture() + (time[:, None, None] // 4).astype(np.uint8)  # the light changes all the time
    loop = find_loop(*track(30 * np.sin(2 * np.pi * time / 120)), picture)
    assert loop.mode == "ping_pong"


def test_a_turned_head_is_not_a_match_for_a_straight_one():
    pose, crop = track(np.zeros(400))
    pose[:, 1] = np.linspace(0, 0.8, 400)
    assert find_loop(pose, crop, still_picture()).mode == "ping_pong"


def test_a_short_clip_still_has_a_loop():
    loop = find_loop(*track(np.zeros(50), 50), still_picture(50))
    assert (loop.start, loop.stop) == (0, 50)

"""Landmarks of every frame, near and far, and how gaps in them are treated."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from engine.errors import DependencyError
from precompute.scan import face_height, scan
from precompute.track import FaceTracker, fill_gaps, longest_run, track


def test_the_longest_run_bridges_short_gaps_only():
    tracked = np.ones(100, bool)
    tracked[20:23] = False
    tracked[60:64] = False
    assert longest_run(tracked) == slice(0, 60)
    assert longest_run(tracked, max_gap=4) == slice(0, 100)
    assert longest_run(np.zeros(10, bool)) == slice(0, 0)


def test_a_run_begins_and_ends_with_a_face():
    tracked = np.array([False, True, True, False, True, False, False])
    assert longest_run(tracked) == slice(1, 5)


def test_gaps_are_filled_in_a_straight_line_and_nothing_else_changes():
    points = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, 478, 3), np.float32)
    holed = points.copy()
    holed[2:4] = np.nan
    assert np.allclose(fill_gaps(holed), points)
    assert np.isnan(holed[2]).all()


def test_landmarks_lie_on_the_face(face_frames):
    landmarks = track(face_frames[:5])
    assert landmarks.tracked.all()
    points = landmarks.points[-1]
    assert points.shape == (478, 3)
    assert points[:, :2].min() > 0
    assert points[:, :2].max() < 360
    assert points[10, 1] < points[1, 1] < points[13, 1] < points[152, 1]  # forehead, nose, lips, chin


@pytest.mark.parametrize("face_px", [60, 90, 150])
def test_a_distant_face_is_found_at_its_place(face_frames, face_px):
    with FaceTracker() as tracker:
        near = tracker.detect(face_frames[0])[0]
    scale = face_px / float(face_height(near))
    small = cv2.resize(face_frames[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas = np.full((720, 1280, 3), 100, np.uint8)
    canvas[300 : 300 + small.shape[0], 800 : 800 + small.shape[1]] = small
    with FaceTracker() as tracker:
        far = [tracker.detect(canvas) for _ in range(3)][-1][0]
    wanted = near[:, :2] * scale + (800, 300)
    assert np.linalg.norm(far[:, :2] - wanted, axis=1).mean() < 0.05 * face_px


def test_a_scan_counts_each_face_once_and_sees_blur_light_and_cuts(face_frames):
    sharp = face_frames[0]
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    dark = (sharp * 0.3).astype(np.uint8)
    other = np.full_like(sharp, (30, 160, 60))
    counts = []
    clip = scan([sharp, sharp, blurred, dark, other], on_frame=counts.append)
    assert clip.landmarks.faces.tolist() == [1, 1, 1, 1, 0]
    assert clip.sharpness[2] < 0.3 * clip.sharpness[1]
    assert clip.brightness[3] < 0.4 * clip.brightness[1]
    assert np.isnan(clip.sharpness[4])
    assert clip.change[1] == 0
    assert clip.change[4] > 0.9
    assert counts == [1, 2, 3, 4, 5]
    assert len(clip) == 5


def test_an_empty_scan_is_possible():
    clip = scan([])
    assert len(clip) == 0
    assert clip.landmarks.points.shape == (0, 478, 3)


def test_without_the_face_tracker_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions", None)
    with pytest.raises(DependencyError, match=r"personastream\[enroll\]"):
        FaceTracker()

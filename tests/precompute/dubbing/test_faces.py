"""Shots, tracks and people, from made measures."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from precompute.dubbing.ahead import ahead
from precompute.dubbing.faces import Faces, find_shots, tracks
from precompute.dubbing.people import boxes
from precompute.dubbing.source import Times

RATE_HZ = 25.0


def a_mesh(x, y, height):
    """A face [478, 3] with its centre at x, y."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.4, 0.4, (478, 3))
    points[10], points[152] = (0, -0.5, 0), (0, 0.5, 0)
    return (points * height + (x, y, 0)).astype(np.float32)


@pytest.fixture
def faces_of():
    """faces_of(rows, shots): from (picture, x, y, height) for each face."""

    def make(rows, shots):
        count = shots[-1].stop
        ticks = np.arange(count)
        times = Times(Fraction(1, 25), ticks, count, ticks, np.ones(count, bool))
        return Faces(
            points=np.stack([a_mesh(*row[1:]) for row in rows]),
            picture=np.array([row[0] for row in rows]),
            sharpness=np.ones(len(rows), np.float32),
            covered=np.zeros(len(rows), np.float32),
            embedded=np.zeros(0, int),
            embedding=np.zeros((0, 128), np.float32),
            times=times,
            shots=tuple(shots),
        )

    return make


def test_two_faces_are_followed_though_their_order_changes(faces_of):
    rows = []
    for n in range(20):
        pair = [(n, 100 + n, 100, 80), (n, 400, 100, 82)]
        rows += pair[:: 1 if n % 2 else -1]
    found = tracks(faces_of(rows, [slice(0, 20)]))
    assert sorted(len(track.rows) for track in found) == [20, 20]


def test_a_track_ends_with_its_shot(faces_of):
    rows = [(n, 100, 100, 80) for n in range(20)]
    found = tracks(faces_of(rows, [slice(0, 10), slice(10, 20)]))
    assert [(track.shot, len(track.rows)) for track in found] == [(0, 10), (1, 10)]


def test_a_face_that_is_lost_for_a_moment_goes_on_and_one_that_leaves_begins_anew(faces_of):
    rows = [(n, 100, 100, 80) for n in (*range(10), *range(14, 30), *range(60, 70))]
    found = tracks(faces_of(rows, [slice(0, 70)]))
    assert [len(track.rows) for track in found] == [26, 10]


def test_a_cut_is_where_the_colours_change():
    measures = np.zeros((40, 2), np.float32)
    measures[20, 0] = 0.6
    assert find_shots(measures, np.zeros(0, int), np.zeros((0, 478, 3)), RATE_HZ) == (slice(0, 20), slice(20, 40))


def test_a_cut_inside_one_scene_is_where_picture_and_face_jump_together():
    measures = np.full((40, 2), (0.05, 0.5), np.float32)
    measures[20, 1] = 30
    points = np.stack([a_mesh(100 if n < 20 else 160, 100, 80) for n in range(40)])
    assert find_shots(measures, np.arange(40), points, RATE_HZ) == (slice(0, 20), slice(20, 40))
    still = np.stack([a_mesh(100, 100, 80)] * 40)
    assert find_shots(measures, np.arange(40), still, RATE_HZ) == (slice(0, 40),)


def test_squares_around_faces_stay_inside_the_picture():
    crop = np.array([[-20, 10, 100], [600, 300, 200]])
    assert boxes(crop, (640, 360)).tolist() == [[0, 10, 80, 110], [600, 300, 640, 360]]


def test_reading_ahead_keeps_the_order_and_raises_where_the_error_is_due():
    def items():
        yield from range(5)
        raise OSError("damaged")

    seen = []
    with pytest.raises(OSError, match="damaged"):
        for item in ahead(items(), 2):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]


def test_reading_ahead_is_bounded_and_ends_with_its_reader():
    made, closed = [], []

    def items():
        try:
            for n in range(1000):
                made.append(n)
                yield n
        finally:
            closed.append(True)

    reader = ahead(items(), 3)
    assert next(reader) == 0
    reader.close()
    assert len(made) <= 6
    assert closed

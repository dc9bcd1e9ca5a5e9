"""Which frames and lips a picture takes its textures from, and which frames stay decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.paint.references import FACE_REFERENCES, LIP_REFERENCES, FrameCache, LipReferences, nearest, neighbours
from engine.paint.shape import SHAPE_VERTICES, Shape

FRAMES = 30


def shape(opening=0.0, turn=0.0):
    """A shape whose vertices are all lowered by `opening`, turned by `turn`."""
    canonical = np.zeros((SHAPE_VERTICES, 3), np.float32)
    canonical[:, 1] = opening
    return Shape(canonical, canonical, np.array([0, turn, 0], np.float32))


class Reader:
    """Fetches and places frames, and counts both. Frames in `broken` cannot be fetched."""

    def __init__(self, broken=()):
        self.fetched, self.places, self.broken = [], [], broken

    def fetch(self, index):
        self.fetched.append(index)
        if index in self.broken:
            raise ValueError(f"frame {index}")
        return f"image {index}"

    def place(self, index, image, place):
        self.places.append(place)
        return f"{image} placed"

    def cache(self, capacity=6, pool=None):
        return FrameCache(FRAMES, capacity, self.fetch, self.place, pool)


@pytest.mark.parametrize(("index", "expected"), [
    (10, [10, 8, 9, 11, 12]), (0, [0, 1, 2]), (1, [1, 0, 2, 3]), (FRAMES - 1, [29, 27, 28]),
])  # fmt: skip
def test_face_references_are_the_base_frame_and_its_neighbours_in_time(index, expected):
    assert neighbours(index, FRAMES) == expected


def test_the_nearest_shapes_are_those_with_the_targets_lips_and_turn():
    shapes = [shape(0.05 * i) for i in range(8)]
    assert nearest(shapes[3], shapes, 3)[0] == 3 and set(nearest(shapes[3], shapes, 3)) == {2, 3, 4}
    turned = [shape(0.05, 0.5), shape(0.07, 0.0), shape(0.05, 0.1)]
    assert nearest(shape(0.05), turned, 3) == [1, 2, 0]


def test_lips_come_from_the_bank_and_from_the_pictures_own_frames():
    lips = LipReferences([shape(0.1 * i) for i in range(4)])
    chosen = lips.choose(shape(0.31), [shape(0.31), shape(0.9)])
    assert chosen[:2] == [4, 3] and len(chosen) == LIP_REFERENCES
    # the frames of an earlier picture are no candidates
    assert sorted(lips.choose(shape(0.31), [shape(0.5)])) == [0, 1, 2, 3, 4]
    assert lips.choose(shape(0.31), [shape(0.31)] * FACE_REFERENCES)[0] == 4


def test_frames_are_fetched_once_while_they_are_near():
    reader = Reader()
    cache = reader.cache()
    assert cache.faces(10) == [f"image {i} placed" for i in (10, 8, 9, 11, 12)]
    cache.faces(11)
    assert sorted(reader.fetched) == [8, 9, 10, 11, 12, 13]


def test_a_new_frame_takes_the_place_of_the_one_that_was_needed_longest_ago():
    reader = Reader()
    cache = reader.cache(capacity=6)
    cache.faces(10)
    cache.faces(11)
    assert sorted(reader.places) == list(range(6))
    place_of_8 = reader.places[reader.fetched.index(8)]
    cache.faces(12)
    assert reader.fetched[6:] == [14] and reader.places[6:] == [place_of_8]


def test_the_next_frame_is_fetched_ahead_in_the_direction_of_the_loop():
    reader = Reader()
    with ThreadPoolExecutor(1) as pool:
        cache = reader.cache(12, pool)
        cache.faces(10)
        cache.faces(11)
        cache.faces(10)
    assert sorted(reader.fetched) == [7, 8, 9, 10, 11, 12, 13, 14]
    before = len(reader.fetched)
    with ThreadPoolExecutor(1) as pool:
        assert reader.cache(12).faces(10) and len(reader.fetched) == before + 5, "without a pool none is fetched ahead"


def test_a_frame_that_cannot_be_fetched_fails_alone():
    reader = Reader(broken={13})
    with ThreadPoolExecutor(1) as pool:
        cache = reader.cache(6, pool)
        first = cache.faces(10)
        for _ in range(2):  # fetched ahead, and then when it is needed
            with pytest.raises(ValueError, match="frame 13"):
                cache.faces(11)
        assert cache.faces(10) == first


def test_a_cache_holds_pictures_whose_frames_fit_into_it():
    cache = Reader().cache(6)
    assert cache.holds([10, 10, 11]) and not cache.holds([10, 12])

"""Places of a growing array are given out once, and again after they were given back."""

from __future__ import annotations

import random

from engine.paint.gpu.places import Places


def test_places_are_reused_and_neighbours_join():
    places = Places()
    starts = [places.take(10) for _ in range(3)]
    assert starts == [0, 10, 20] and places.count == 30
    for start in (20, 0, 10):
        places.give_back(start, 10)
    assert places.take(25) == 0 and places.take(5) == 25 and places.count == 30
    assert places.take(1) == 30


def test_no_place_is_given_out_twice():
    chance, places, held = random.Random(0), Places(), {}
    for _ in range(2000):
        if held and chance.random() < 0.5:
            start = chance.choice(list(held))
            places.give_back(start, held.pop(start))
        else:
            count = chance.randint(1, 9)
            held[places.take(count)] = count
        taken = [place for start, count in held.items() for place in range(start, start + count)]
        assert len(taken) == len(set(taken)) and all(place < places.count for place in taken)

"""Text cut into sentences."""

from __future__ import annotations

import pytest

from streaming.voices.sentences import FIRST_CHARS, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n ", []),
        ("Hello.", ["Hello."]),
        ("The first one is here. And then the second one!", ["The first one is here.", "And then the second one!"]),
        ('He said "that is it." Then he went home.', ['He said "that is it."', "Then he went home."]),
        ("Dr. Smith went home.  Mrs. Jones stayed there.", ["Dr. Smith went home.", "Mrs. Jones stayed there."]),
        ("Yes. No. I do not know that at all.", ["Yes. No. I do not know that at all."]),
        ("Version 3.11 of it is here.\nIt is a good one", ["Version 3.11 of it is here.", "It is a good one"]),
        ("That was a whole sentence. Yes.", ["That was a whole sentence. Yes."]),
        (
            "今天天气很好，我们一起出去走走吧。明天也许会下大雨，所以要带伞。",
            ["今天天气很好，我们一起出去走走吧。", "明天也许会下大雨，所以要带伞。"],
        ),
    ],
)
def test_text_is_cut_where_sentences_end(text, expected):
    assert sentences(text) == expected


def test_a_long_first_sentence_is_cut_at_its_clauses_so_that_sound_comes_early():
    first = "When the sun rises over the hills, " * 4 + "we go to the river."
    pieces = sentences(f"{first} Then we swim in it, if the water is warm enough for us, and not before it is so.")
    assert max(map(len, pieces[:-1])) < FIRST_CHARS and pieces[-1].startswith("Then we swim")
    assert " ".join(pieces[:-1]) == first

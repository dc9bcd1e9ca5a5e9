"""Text cut into sentences, and sound into samples."""

from __future__ import annotations

import pytest

from streaming.errors import VoiceFormatError
from streaming.voices.voice import FIRST_CHARS, SampleCutter, sentences


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


def test_samples_are_whole_however_the_bytes_are_cut():
    cutter = SampleCutter("v", "text", 16_000)
    assert [cutter.push(piece) for piece in (b"a", b"b", b"cde", b"f")] == [b"", b"ab", b"cd", b"ef"]
    assert cutter.seconds == 3 / 16_000


def test_more_sound_than_the_text_can_be_is_refused():
    cutter = SampleCutter("v", "x" * 30, 8_000)
    cutter.push(bytes(2 * 8_000 * 30))
    with pytest.raises(VoiceFormatError, match="sent 30 s of sound for a text that takes 30 s"):
        cutter.push(bytes(2))

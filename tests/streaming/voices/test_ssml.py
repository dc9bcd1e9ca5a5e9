"""Texts with SSML are spoken as meant, or without their tags."""

from __future__ import annotations

import pytest

from streaming.voices.ssml import plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Plain < and > & text.", "Plain < and > & text."),
        ("<speak>Tom &amp; Ann</speak>", "Tom & Ann"),
        ('One <break time="500ms"/> two', "One \n two"),
        ('<speak>Dial <say-as interpret-as="characters">AB 1</say-as></speak>', "Dial A B 1"),
        ("<sub alias='World Wide Web Consortium'>W3C</sub> says", "World Wide Web Consortium says"),
        ('<prosody rate="slow">Slow</prosody> and <amazon:effect name="whispered">low</amazon:effect>', "Slow and low"),
        (
            "<?xml version='1.0'?><speak xmlns='x'><!-- aside --><p><s>One.</s><s>Two.</s></p></speak>",
            "\n\nOne.\n\nTwo.\n\n",
        ),
        ("x <y and y> z", "x <y and y> z"),
    ],
)
def test_tags_are_not_read_out(text, words):
    assert plain(text) == words

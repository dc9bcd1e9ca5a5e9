"""Voices found by name, and sound cut into samples."""

from __future__ import annotations

import pytest

from streaming.errors import VoiceError, VoiceFormatError
from streaming.voices.espeak import EspeakVoice
from streaming.voices.voice import SampleCutter, find_voice


def test_samples_are_whole_however_the_bytes_are_cut():
    cutter = SampleCutter("v", "text", 16_000)
    assert [cutter.push(piece) for piece in (b"a", b"b", b"cde", b"f")] == [b"", b"ab", b"cd", b"ef"]
    assert cutter.seconds == 3 / 16_000


def test_more_sound_than_the_text_can_be_is_refused():
    cutter = SampleCutter("v", "x" * 30, 8_000)
    cutter.push(bytes(2 * 8_000 * 30))
    with pytest.raises(VoiceFormatError, match="sent 30 s of sound for a text that takes 30 s"):
        cutter.push(bytes(2))


def test_voices_are_found_by_name_and_the_first_is_the_default():
    voices = {language: EspeakVoice(language) for language in ("en-us", "en-gb", "de")}
    assert find_voice(voices, None) is voices["en-us"]
    assert find_voice(voices, "de") == EspeakVoice("de")
    with pytest.raises(VoiceError, match="expected one of en-us, en-gb"):
        find_voice(voices, "klingon")
    with pytest.raises(VoiceError, match=r"speech\.start"):
        find_voice({}, None)

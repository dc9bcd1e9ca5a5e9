"""Text to speech with the embedded voice, as the installed program and as the library of the wheel."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from speaking import speak_whole

from streaming.errors import VoiceError
from streaming.voices.espeak import EspeakVoice, espeak_command
from streaming.voices.espeak_child import wav_header

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(params=["program", "library"])
def espeak(request, monkeypatch):
    """Runs a test once with the program on PATH and once without it."""
    if request.param == "program" and not shutil.which("espeak-ng"):
        pytest.skip("no espeak-ng program on PATH")
    if request.param == "library":
        if not importlib.util.find_spec("espeakng_loader"):
            pytest.skip("espeakng-loader is not installed")
        monkeypatch.setenv("PATH", "")


def test_text_becomes_speech(espeak):
    pcm = np.frombuffer(asyncio.run(speak_whole(EspeakVoice("en-us"), TEXT)), np.int16)
    assert 1.5 < len(pcm) / 22_050 < 5
    assert np.abs(pcm).max() > 3_000


def test_the_voice_decides_the_language(espeak):
    english = asyncio.run(speak_whole(EspeakVoice("en-us"), TEXT))
    german = asyncio.run(speak_whole(EspeakVoice("de"), TEXT))
    assert english != german


def children():
    """Process ids of our own children that run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_sound_streams_before_the_text_is_spoken_to_its_end(espeak):
    async def main():
        before, pieces = children(), EspeakVoice("en-us").speak(TEXT * 300)
        await anext(pieces)
        # The pipe holds seconds of the minutes that follow, so a child that is not read cannot have ended.
        assert children() - before, "the first sound came when all of it was made"
        await pieces.aclose()
        assert not children() - before

    asyncio.run(main())


def test_a_reader_that_leaves_ends_the_child(espeak):
    async def leave():
        pieces = EspeakVoice("en-us").speak(TEXT * 100)
        await anext(pieces)
        await asyncio.wait_for(pieces.aclose(), 60)

    asyncio.run(leave())


def test_a_voice_that_espeak_lacks_is_an_error_that_names_it(espeak):
    with pytest.raises(VoiceError, match="xx-none"):
        asyncio.run(speak_whole(EspeakVoice("xx-none"), TEXT))


def test_a_program_that_does_not_start_is_an_error_with_the_remedy(monkeypatch, tmp_path):
    program = tmp_path / "espeak-ng"
    program.write_text("not a program")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VoiceError, match="does not start .*check that it can be executed"):
        asyncio.run(speak_whole(EspeakVoice("en-us"), TEXT))


def test_a_program_that_fails_after_some_sound_is_an_error(monkeypatch, tmp_path):
    program = tmp_path / "espeak-ng"
    header = "".join(f"\\{byte:03o}" for byte in wav_header(22_050))
    program.write_text(f"#!/bin/sh\ncat > /dev/null\nprintf '{header}abcd'\necho broken >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(VoiceError, match=r"exit code 3 \(broken\)"):
        asyncio.run(speak_whole(EspeakVoice("en-us"), TEXT))


def test_no_espeak_at_all_names_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VoiceError, match="pip install espeakng-loader"):
        espeak_command("en-us")

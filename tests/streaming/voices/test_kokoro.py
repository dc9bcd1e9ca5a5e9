"""Kokoro's process, spoken to through its pipes. The real model is used where it is installed and named."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from streaming.errors import VoiceBrokenError, VoiceError
from streaming.voices.catalogue import KOKORO_MODEL_ENV, KOKORO_VOICES_ENV
from streaming.voices.kokoro import KokoroVoice, open_kokoro
from streaming.voices.voice import speak_whole

LIBRARY = """
    import asyncio, os
    import numpy as np

    class Kokoro:
        def __init__(self, model, voices):
            assert open(model).read() == "model"

        def get_voices(self):
            return ["af_heart", "ff_siwis"]

        def create(self, text, voice):
            return np.zeros(1, np.float32), 24000

        async def create_stream(self, text, voice, lang):
            if text == "die":
                os._exit(3)
            if text == "refuse":
                raise ValueError("no phonemes")
            for _ in text.split():
                await asyncio.sleep(0.02)
                yield np.full(100, {"en-us": 0.25, "fr-fr": 0.5}[lang], np.float32), 24000
"""


@pytest.fixture
def kokoro(tmp_path, monkeypatch):
    """Files for `open_kokoro`, and a library of that name with its interface, for the process to import."""
    (tmp_path / "kokoro_onnx.py").write_text(textwrap.dedent(LIBRARY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    files = tmp_path / "model.onnx", tmp_path / "voices.bin"
    for file in files:
        file.write_text("model")
    return files


async def test_sentences_are_spoken_in_the_voices_own_language(kokoro):
    async with open_kokoro(*kokoro) as process:
        assert process.names == ["af_heart", "ff_siwis"]
        for name, level in (("af_heart", 8192), ("ff_siwis", 16384)):
            pcm = np.frombuffer(
                await speak_whole(KokoroVoice(process, name), "One sentence here. And one more."), "<i2"
            )
            assert len(pcm) == 600 and abs(int(pcm[0]) - level) < 2


async def test_a_text_that_nobody_hears_to_its_end_is_not_heard_in_the_next(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        pieces = voice.speak("word " * 20)
        await anext(pieces)
        await pieces.aclose()
        assert len(await speak_whole(voice, "two words")) == 2 * 200


async def test_two_sessions_take_turns(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        said = await asyncio.gather(*(speak_whole(voice, "three little words") for _ in range(3)))
        assert [len(pcm) for pcm in said] == [600] * 3


async def test_what_it_cannot_say_is_an_error_and_it_goes_on(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        with pytest.raises(VoiceError, match="no phonemes"):
            await speak_whole(voice, "refuse")
        assert len(await speak_whole(voice, "two words")) == 400


async def test_a_process_that_dies_is_an_error_at_once_and_ever_after(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        for _ in range(2):
            with pytest.raises(VoiceBrokenError, match="restart the server"):
                await speak_whole(voice, "die")


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("kokoro_onnx") and os.environ.get(KOKORO_MODEL_ENV)),
    reason=f"needs kokoro-onnx, and {KOKORO_MODEL_ENV} and {KOKORO_VOICES_ENV}",
)
async def test_the_real_model_speaks():
    async with open_kokoro(Path(os.environ[KOKORO_MODEL_ENV]), Path(os.environ[KOKORO_VOICES_ENV])) as process:
        pcm = np.frombuffer(await speak_whole(KokoroVoice(process, process.names[0]), "Hello, this is a test."), "<i2")
    assert 1 < len(pcm) / 24_000 < 5 and np.abs(pcm.astype(int)).max() > 3_000

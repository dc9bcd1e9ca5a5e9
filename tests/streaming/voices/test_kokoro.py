"""Kokoro's process behind its pipes, with a library of its interface, and the real model where it is configured."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from speaking import speak_whole

from streaming.errors import VoiceBrokenError, VoiceError
from streaming.voices.configured import KOKORO_MODEL_ENV, KOKORO_VOICES_ENV
from streaming.voices.kokoro import KokoroVoice, open_kokoro
from streaming.voices.kokoro_child import SOUND, RecordReader, write_record

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


async def test_the_rest_of_a_text_left_early_is_not_heard_in_the_next(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        pieces = voice.speak("word " * 20)
        await anext(pieces)
        await pieces.aclose()
        assert len(await speak_whole(voice, "two words")) == 2 * 200


async def test_a_read_cancelled_in_the_middle_of_a_record_loses_nothing():
    record = io.BytesIO()
    write_record(record, SOUND, b"sound")
    stream = asyncio.StreamReader()
    records = RecordReader(stream)
    stream.feed_data(record.getvalue()[:-2])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await records.read()
    stream.feed_data(record.getvalue()[-2:] + record.getvalue())
    assert [await records.read() for _ in range(2)] == [(SOUND, b"sound")] * 2


async def test_two_sessions_take_turns(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        sounds = await asyncio.gather(*(speak_whole(voice, "three little words") for _ in range(3)))
        assert [len(pcm) for pcm in sounds] == [600] * 3


async def test_a_text_that_it_refuses_is_an_error_and_the_next_is_spoken(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        with pytest.raises(VoiceError, match="no phonemes"):
            await speak_whole(voice, "refuse")
        assert len(await speak_whole(voice, "two words")) == 400


async def test_a_process_that_dies_is_an_error_for_this_text_and_the_next(kokoro):
    async with open_kokoro(*kokoro) as process:
        voice = KokoroVoice(process, "af_heart")
        for _ in range(2):
            with pytest.raises(VoiceBrokenError, match="restart the server"):
                await speak_whole(voice, "die")


if os.environ.get(KOKORO_MODEL_ENV):  # 330 MB that no package registry has: the test exists where they do

    @pytest.mark.slow
    async def test_the_real_model_speaks():
        async with open_kokoro(Path(os.environ[KOKORO_MODEL_ENV]), Path(os.environ[KOKORO_VOICES_ENV])) as process:
            voice = KokoroVoice(process, process.names[0])
            pcm = np.frombuffer(await speak_whole(voice, "Hello, this is a test."), "<i2")
        assert 1 < len(pcm) / 24_000 < 5 and np.abs(pcm.astype(int)).max() > 3_000

"""Kokoro's process, spoken to through its pipes. The real library speaks with a model of a few bytes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streaming.errors import VoiceBrokenError, VoiceError
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


def write_tiny_kokoro(folder):
    """A model with Kokoro's inputs and output, which hums 20 ms for each phoneme, and its voices as kokoro-onnx 0.3
    reads them."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "n"])
    style = helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 256])
    speed = helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1])
    audio = helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["samples"])
    hum = numpy_helper.from_array(np.tile(np.float32([0.25, -0.25]), 240), "hum")
    nodes = [helper.make_node("Size", ["tokens"], ["n"]), helper.make_node("Reshape", ["n", "one"], ["times"])]
    nodes.append(helper.make_node("Tile", ["hum", "times"], ["audio"]))
    one = numpy_helper.from_array(np.int64([1]), "one")
    graph = helper.make_graph(nodes, "kokoro", [tokens, style, speed], [audio], [hum, one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "tiny.onnx")
    (folder / "voices.json").write_text(json.dumps({"af_heart": np.zeros((511, 1, 256)).tolist()}))
    return folder / "tiny.onnx", folder / "voices.json"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("kokoro_onnx"), reason="the extra `kokoro` is not installed")
async def test_the_real_library_speaks_with_a_model_of_kokoros_interface(tmp_path):
    async with open_kokoro(*write_tiny_kokoro(tmp_path)) as process:
        assert process.names == ["af_heart"]
        pcm = np.frombuffer(await speak_whole(KokoroVoice(process, "af_heart"), "Hello, this is a test."), "<i2")
    assert 0.2 < len(pcm) / 24_000 < 1.0 and np.abs(pcm).max() == 8192

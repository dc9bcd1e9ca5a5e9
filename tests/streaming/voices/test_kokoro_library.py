"""kokoro-onnx itself in Kokoro's process, with a model of a few bytes: no package carries the real one."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streaming.voices.kokoro import KokoroVoice, open_kokoro


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
async def test_the_library_speaks_with_a_model_of_kokoros_interface(tmp_path):
    async with open_kokoro(*write_tiny_kokoro(tmp_path)) as process:
        assert process.names == ["af_heart"]
        pieces = [piece async for piece in KokoroVoice(process, "af_heart").speak("Hello, this is a test.")]
    pcm = np.frombuffer(b"".join(pieces), "<i2")
    assert 0.2 < len(pcm) / 24_000 < 1.0 and np.abs(pcm).max() == 8192

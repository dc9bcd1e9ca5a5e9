"""Piper, played by a program of that name: how it is started, and its errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from speaking import speak_whole

from streaming.config import VoicesConfig
from streaming.errors import VoiceBrokenError, VoiceError
from streaming.voices.configured import open_voices
from streaming.voices.piper import open_piper


@pytest.fixture
def piper(tmp_path, monkeypatch):
    """`piper(script, settings)`: a model, and a program called piper that runs `script`."""

    def make(script: str, settings: object = None) -> Path:
        program = tmp_path / "piper"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        model = tmp_path / "joe.onnx"
        model.write_bytes(b"")
        settings = {"audio": {"sample_rate": 22_050}} if settings is None else settings
        model.with_name("joe.onnx.json").write_text(json.dumps(settings))
        return model

    return make


async def test_piper_gets_the_text_as_one_line_and_its_raw_sound_is_taken(piper):
    model = piper('test "$1 $3" = "--model --output_raw" || exit 9; cat')
    async with open_voices(VoicesConfig(piper_models=(model,))) as voices:
        assert voices["piper/joe"].sample_rate_hz == 22_050
        assert await speak_whole(voices["piper/joe"], "Two lines\nof text.") == b"Two lines of text.\n"[:18]


async def test_an_error_of_piper_is_in_the_message(piper):
    model = piper("cat > /dev/null; echo bad model >&2; exit 1")
    with pytest.raises(VoiceBrokenError, match=r"'joe' stopped with exit code 1 \(bad model\)"):
        await speak_whole(open_piper(model), "One sentence.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [([], "no settings of a Piper voice"), ({"audio": {"sample_rate": 7}}, "speaks at 7 Hz")],
)
def test_a_piper_model_with_odd_settings_is_refused(piper, settings, message):
    with pytest.raises(VoiceError, match=message):
        open_piper(piper("cat", settings))


def test_a_piper_model_without_its_settings_or_without_piper_is_refused(piper, monkeypatch):
    model = piper("cat")
    model.with_name("joe.onnx.json").unlink()
    with pytest.raises(VoiceError, match="NAME.onnx and NAME.onnx.json"):
        open_piper(model)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(VoiceError, match="pip install piper-tts"):
        open_piper(model)

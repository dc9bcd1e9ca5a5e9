"""Which voices a configuration gives, and what is said about one that cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from streaming.config import VoicesConfig
from streaming.errors import VoiceAuthError, VoiceBrokenError, VoiceError
from streaming.voices.catalogue import KOKORO_MODEL_ENV, KOKORO_VOICES_ENV, espeak_voices, open_voices
from streaming.voices.program import ESPEAK_LANGUAGES, open_piper
from streaming.voices.voice import speak_whole


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (KOKORO_MODEL_ENV, KOKORO_VOICES_ENV, "OPENAI_API_KEY", "DEEPGRAM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


async def test_without_settings_there_are_the_embedded_voices():
    async with open_voices(VoicesConfig()) as voices:
        assert list(voices) == list(ESPEAK_LANGUAGES) == list(espeak_voices())


async def test_a_configured_service_comes_first_and_speaks_with_the_key_of_the_environment(service, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "secret")
    keys = []

    async def answer(request):
        keys.append(request.headers.get("Authorization"))
        return web.Response(body=bytes(960), content_type="audio/pcm")

    async with service("/v1/audio/speech", answer) as url:
        config = VoicesConfig(api_url=f"{url}/v1/", api_voices=("ada", "bob"), api_key_env="OTHER_KEY")
        async with open_voices(config) as voices:
            assert list(voices)[:3] == ["api/ada", "api/bob", "en-us"]
            assert await speak_whole(voices["api/bob"], "One sentence.") == bytes(960)
        async with open_voices(VoicesConfig(api_url=f"{url}/v1")) as voices:  # local servers want no key
            await speak_whole(voices["api/alloy"], "One sentence.")
    assert keys == ["Bearer secret", None]


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (VoicesConfig(socket_service="deepgram", socket_voices=("v",)), VoiceAuthError, "variable DEEPGRAM_API_KEY"),
        (VoicesConfig(socket_service="deepgram", socket_key_env="HOME"), VoiceError, "give --voices.socket-voices"),
        (VoicesConfig(kokoro_model=Path("m.onnx")), VoiceError, "needs two files, found one"),
        (VoicesConfig(kokoro_model=Path("m.onnx"), kokoro_voices=Path("v")), VoiceError, "m.onnx: no such file"),
    ],
)
async def test_a_voice_that_cannot_be_had_is_an_error_when_the_server_starts(config, kind, said):
    with pytest.raises(VoiceError, match=said) as failure:
        async with open_voices(config):
            pass
    assert type(failure.value) is kind


async def test_files_that_are_no_kokoro_model_are_refused_with_the_remedy(tmp_path, monkeypatch):
    for variable, name in ((KOKORO_MODEL_ENV, "model.onnx"), (KOKORO_VOICES_ENV, "voices.bin")):
        (tmp_path / name).write_bytes(b"no model")
        monkeypatch.setenv(variable, str(tmp_path / name))
    with pytest.raises(VoiceError, match=r"Kokoro does not start .*pip install personastream\[kokoro\]"):
        async with open_voices(VoicesConfig()):
            pass


@pytest.fixture
def piper(tmp_path, monkeypatch):
    """`piper(script, settings)`: a model, and a program called piper that runs `script`."""

    def make(script: str, settings: object = None) -> Path:
        program = tmp_path / "piper"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "piper" else None)
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


async def test_piper_that_fails_says_why(piper):
    model = piper("cat > /dev/null; echo bad model >&2; exit 1")
    with pytest.raises(VoiceBrokenError, match=r"'joe' stopped with exit code 1 \(bad model\)"):
        await speak_whole(open_piper(model), "One sentence.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [([], "no settings of a Piper voice"), ({"audio": {"sample_rate": 7}}, "speaks at 7 Hz")],
)
def test_a_piper_model_with_odd_settings_is_refused(piper, settings, said):
    with pytest.raises(VoiceError, match=said):
        open_piper(piper("cat", settings))


def test_a_piper_model_without_its_settings_or_without_piper_is_refused(piper, monkeypatch):
    model = piper("cat")
    model.with_name("joe.onnx.json").unlink()
    with pytest.raises(VoiceError, match="NAME.onnx and NAME.onnx.json"):
        open_piper(model)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(VoiceError, match="pip install piper-tts"):
        open_piper(model)

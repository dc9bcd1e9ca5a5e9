"""Which voices a server has: the configured ones that work, by the names that clients ask for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from streaming.config import VoicesConfig
from streaming.errors import VoiceAuthError, VoiceError
from streaming.voices.kokoro import KokoroVoice, open_kokoro
from streaming.voices.program import ESPEAK_LANGUAGES, EspeakVoice, espeak_command, open_piper
from streaming.voices.socket_api import ServiceName, SocketVoice
from streaming.voices.speech_api import SpeechApiVoice
from streaming.voices.voice import Voice

log = logging.getLogger(__name__)

KOKORO_MODEL_ENV = "PERSONASTREAM_KOKORO_MODEL"
KOKORO_VOICES_ENV = "PERSONASTREAM_KOKORO_VOICES"


@contextlib.asynccontextmanager
async def open_voices(config: VoicesConfig) -> AsyncIterator[dict[str, Voice]]:
    """The voices by name for the time of the block, natural ones first; the first is the default.

    VoiceError for a voice that was asked for and cannot be had: a missing file, package, program or key.
    """
    async with contextlib.AsyncExitStack() as stack:
        voices: dict[str, Voice] = {}
        if config.api_url:
            # No limit on the whole: the length of speech is unknown, and each wait in the client has its own limit.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.stall_s)
            http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
            voices |= _http_voices(config, config.api_url.rstrip("/"), http)
        if config.socket_service:
            voices |= _socket_voices(config, config.socket_service)
        model, names = _kokoro_files(config)
        if model and names:
            kokoro = await stack.enter_async_context(open_kokoro(model, names))
            voices |= {f"kokoro/{name}": KokoroVoice(kokoro, name) for name in kokoro.names}
        voices |= {f"piper/{path.stem}": open_piper(path) for path in config.piper_models}
        voices |= espeak_voices()
        yield voices


def espeak_voices() -> dict[str, Voice]:
    """One voice for each language of eSpeak NG, by its code; none where eSpeak NG cannot be found."""
    try:
        espeak_command("en-us")
    except VoiceError as error:
        log.warning("no embedded voice: %s", error)
        return {}
    return {language: EspeakVoice(language) for language in ESPEAK_LANGUAGES}


def _kokoro_files(config: VoicesConfig) -> tuple[Path | None, Path | None]:
    """Model and voices, as configured or named in the environment; both or neither."""
    found = [
        path or (Path(os.environ[name]) if os.environ.get(name) else None)
        for path, name in ((config.kokoro_model, KOKORO_MODEL_ENV), (config.kokoro_voices, KOKORO_VOICES_ENV))
    ]
    if (found[0] is None) != (found[1] is None):
        raise VoiceError(
            "Kokoro needs two files, found one; give --voices.kokoro-model and --voices.kokoro-voices, or set "
            f"{KOKORO_MODEL_ENV} and {KOKORO_VOICES_ENV}"
        )
    return found[0], found[1]


def _http_voices(config: VoicesConfig, url: str, http: aiohttp.ClientSession) -> dict[str, Voice]:
    return {
        f"api/{name}": SpeechApiVoice(
            http=http,
            url=url,
            model=config.api_model,
            voice=name,
            key=os.environ.get(config.api_key_env),
            stall_s=config.stall_s,
            sample_rate_hz=config.api_rate_hz,
        )
        for name in config.api_voices
    }


def _socket_voices(config: VoicesConfig, service: ServiceName) -> dict[str, Voice]:
    variable = config.socket_key_env or f"{service.upper()}_API_KEY"
    key = os.environ.get(variable)
    if not key:
        raise VoiceAuthError(f"no API key for {service}; set the environment variable {variable}")
    if not config.socket_voices:
        raise VoiceError(f"no voice of {service} named; give --voices.socket-voices")
    return {
        f"{service}/{name}": SocketVoice(
            service=service,
            url=config.socket_url.rstrip("/"),
            model=config.socket_model,
            voice=name,
            key=key,
            stall_s=config.stall_s,
            sample_rate_hz=config.socket_rate_hz,
        )
        for name in config.socket_voices
    }

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
from streaming.voices.socket_api import SocketVoice
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
        if config.api_url or config.socket_service:
            # No limit in all: speech takes as long as it takes, and every wait in the clients has its own.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.stall_s)
            http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
            voices |= _remote_voices(config, http)
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


def _remote_voices(config: VoicesConfig, http: aiohttp.ClientSession) -> dict[str, Voice]:
    voices: dict[str, Voice] = {}
    if config.api_url:
        key = os.environ.get(config.api_key_env)
        for name in config.api_voices:
            voices[f"api/{name}"] = SpeechApiVoice(
                http=http,
                url=config.api_url.rstrip("/"),
                model=config.api_model,
                voice=name,
                key=key,
                stall_s=config.stall_s,
                sample_rate_hz=config.api_rate_hz,
            )
    if config.socket_service:
        variable = config.socket_key_env or f"{config.socket_service.upper()}_API_KEY"
        if not os.environ.get(variable):
            raise VoiceAuthError(f"no API key for {config.socket_service}; set the environment variable {variable}")
        if not config.socket_voices:
            raise VoiceError(f"no voice of {config.socket_service} named; give --voices.socket-voices")
        for name in config.socket_voices:
            voices[f"{config.socket_service}/{name}"] = SocketVoice(
                http=http,
                service=config.socket_service,
                url=config.socket_url.rstrip("/"),
                model=config.socket_model,
                voice=name,
                key=os.environ[variable],
                stall_s=config.stall_s,
                sample_rate_hz=config.socket_rate_hz,
            )
    return voices

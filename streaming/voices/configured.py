"""The voices of a server, made from its settings, by the names that clients use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from streaming.config import VoicesConfig
from streaming.errors import VoiceAuthError, VoiceError
from streaming.voices.espeak import espeak_voices
from streaming.voices.http_api import HttpVoice
from streaming.voices.kokoro import KokoroVoice, open_kokoro
from streaming.voices.piper import open_piper
from streaming.voices.voice import Voice
from streaming.voices.websocket_api import ServiceName, WebsocketVoice

KOKORO_MODEL_ENV = "PERSONASTREAM_KOKORO_MODEL"
KOKORO_VOICES_ENV = "PERSONASTREAM_KOKORO_VOICES"


@contextlib.asynccontextmanager
async def open_voices(config: VoicesConfig) -> AsyncIterator[dict[str, Voice]]:
    """The voices by name for the time of the block, natural ones first; the first is the default.

    VoiceError for a configured voice that lacks its file, package, program or key.
    """
    async with contextlib.AsyncExitStack() as stack:
        voices: dict[str, Voice] = {}
        if config.api_url:
            # No total limit: the length of speech is unknown, and each wait in the client has a limit.
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


def _kokoro_files(config: VoicesConfig) -> tuple[Path | None, Path | None]:
    """Model and voices, from the settings or the environment; both or neither."""
    files = [
        path or (Path(os.environ[name]) if os.environ.get(name) else None)
        for path, name in ((config.kokoro_model, KOKORO_MODEL_ENV), (config.kokoro_voices, KOKORO_VOICES_ENV))
    ]
    if (files[0] is None) != (files[1] is None):
        raise VoiceError(
            "Kokoro needs two files, found one; give --voices.kokoro-model and --voices.kokoro-voices, or set "
            f"{KOKORO_MODEL_ENV} and {KOKORO_VOICES_ENV}"
        )
    return files[0], files[1]


def _http_voices(config: VoicesConfig, url: str, http: aiohttp.ClientSession) -> dict[str, Voice]:
    return {
        f"api/{name}": HttpVoice(
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
        f"{service}/{name}": WebsocketVoice(
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

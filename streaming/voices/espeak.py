"""eSpeak NG: the embedded voices, one for each language. They sound robotic, start at once and need little CPU time."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from streaming.errors import VoiceError
from streaming.voices.speech_program import speak_program
from streaming.voices.voice import Voice

log = logging.getLogger(__name__)

WAV_HEADER_BYTES = 44
LANGUAGES = ("en-us", "en-gb", "de", "es", "fr-fr", "it", "pt-br", "nl", "pl", "ru", "tr", "hi", "cmn", "sv")


@dataclass(frozen=True)
class EspeakVoice:
    """One language of eSpeak NG, which is under the GPL: it runs as a child process behind pipes."""

    language: str
    sample_rate_hz: int = 22_050  # of every eSpeak NG voice without MBROLA; checked against the header

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice."""
        pieces = speak_program(
            espeak_command(self.language), self.language, text, self.sample_rate_hz, WAV_HEADER_BYTES
        )
        async with contextlib.aclosing(pieces):
            async for pcm in pieces:
                yield pcm


def espeak_voices() -> dict[str, Voice]:
    """One voice for each language of eSpeak NG, by its code; none where eSpeak NG is not installed."""
    try:
        espeak_command("en-us")
    except VoiceError as error:
        log.warning("no embedded voice: %s", error)
        return {}
    return {language: EspeakVoice(language) for language in LANGUAGES}


def espeak_command(language: str) -> list[str]:
    """The command line that reads text and writes WAV: the program where it is installed, else the wheel's library."""
    program = shutil.which("espeak-ng")
    if program:
        return [program, "--stdout", "--stdin", "-v", language]
    if importlib.util.find_spec("espeakng_loader"):
        return [sys.executable, "-m", "streaming.voices.espeak_child", language]
    raise VoiceError(
        "no eSpeak NG found; run `pip install espeakng-loader`, or install your system's espeak-ng package"
    )

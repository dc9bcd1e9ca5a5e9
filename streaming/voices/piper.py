"""Piper: natural voices that run locally. It is under the GPL: a child process speaks each text."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from engine.audio import SOURCE_RATES_HZ
from streaming.errors import VoiceError
from streaming.voices.speech_program import speak_program


@dataclass(frozen=True)
class PiperVoice:
    """One model of Piper."""

    model: Path
    sample_rate_hz: int

    async def speak(self, text: str) -> AsyncGenerator[bytes, None]:
        """See Voice. Piper speaks each line of its input and stops after the last."""
        command = [*piper_command(), "--model", str(self.model), "--output_raw"]
        line = " ".join(text.split()) + "\n"
        async with contextlib.aclosing(speak_program(command, self.model.stem, line, self.sample_rate_hz, 0)) as pieces:
            async for pcm in pieces:
                yield pcm


def piper_command() -> list[str]:
    """The command line of the `piper` program on PATH, else of the package; VoiceError where there is neither."""
    program = shutil.which("piper")
    if program:
        return [program]
    if importlib.util.find_spec("piper"):
        return [sys.executable, "-m", "piper"]
    raise VoiceError("no Piper found; run `pip install piper-tts`, or put the `piper` program on PATH")


def open_piper(model: Path) -> PiperVoice:
    """The voice of a Piper model with its settings file beside it; VoiceError names what is missing or wrong."""
    piper_command()
    settings = model.with_name(f"{model.name}.json")
    for path in (model, settings):
        if not path.is_file():
            raise VoiceError(f"{path}: no such file; a Piper voice is two files, NAME.onnx and NAME.onnx.json")
    try:
        rate_hz = json.loads(settings.read_bytes())["audio"]["sample_rate"]
    except (ValueError, KeyError, TypeError) as error:
        raise VoiceError(f"{settings}: no settings of a Piper voice ({error!r}); download it again") from error
    if rate_hz not in SOURCE_RATES_HZ:
        raise VoiceError(f"{settings}: speaks at {rate_hz!r:.40} Hz, expected one of {SOURCE_RATES_HZ}; take another")
    return PiperVoice(model, rate_hz)

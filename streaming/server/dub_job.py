"""One dub: a video gets other words."""

from __future__ import annotations

import contextlib
import wave
from pathlib import Path
from types import MappingProxyType

from engine.dubbing import DUBBING, encode_job
from engine.errors import PersonaStreamError
from streaming.errors import VoiceError
from streaming.server.dub_form import DubForm
from streaming.server.job import Job


class DubJob(Job):
    """Speaks the form's text, where it has one, then dubs its video."""

    work = DUBBING
    fields = MappingProxyType({"speech-format": "speech", "clip-too-short": "options", "setting": "options"})

    def __init__(self, folder: Path, form: DubForm, now: float):
        super().__init__(folder, form.video, form.name, now)
        self.form = form

    @property
    def output(self) -> Path:
        return self.folder / "dub.mp4"

    def encode(self) -> bytes:
        return encode_job(self.form.video, self.form.speech, self.output, self.form.options)

    async def prepare(self) -> None:
        """Write the text as a sound file. Raises VoiceError."""
        if self.form.text is None:
            return
        assert self.form.voice is not None
        await self.begin("voice")
        (path,) = self.form.speech.values()
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(self.form.voice.sample_rate_hz)
            async with contextlib.aclosing(self.form.voice.speak(self.form.text)) as pieces:
                async for pcm in pieces:
                    sound.writeframes(pcm)

    def field_of(self, error: PersonaStreamError) -> str | None:
        return "text" if isinstance(error, VoiceError) else super().field_of(error)

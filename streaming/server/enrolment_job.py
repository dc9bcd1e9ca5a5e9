"""One enrolment: a video becomes an avatar of the running server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from engine.enrolment import ENROLMENT, encode_job
from streaming.server.job import Job
from streaming.server.made_avatars import MadeAvatars


@dataclass(frozen=True, kw_only=True)
class EnrolmentForm:
    """A checked form: the video, the avatar's name, and who agreed to what."""

    video: Path
    video_name: str
    name: str
    consent: str


class EnrolmentJob(Job):
    """Makes the avatar and has it loaded. The video is deleted with the job's folder at its end, whatever the end."""

    work = ENROLMENT
    fields = MappingProxyType({"avatar-exists": "name"})
    keeps_files = False

    def __init__(self, folder: Path, form: EnrolmentForm, made: MadeAvatars, now: float):
        super().__init__(folder, form.video, form.video_name, now)
        self._form, self._made, self._output = form, made, folder / "made.avatar"

    @property
    def name(self) -> str:
        return self._form.name

    def encode(self) -> bytes:
        return encode_job(self.video, self._output, self._form.name, self._form.consent)

    async def complete(self) -> None:
        await self.begin("load")
        await self._made.install(self._form.name, self._output)

"""The form of `POST /v1/dubs`: its files go to the disk as they arrive, its fields are checked."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from engine.dubbing import DubOptions, Length, faces_of
from engine.errors import NotAVideoError, PersonaStreamError, ProtocolError, SettingError, SpeechFormatError
from streaming.config import DubsConfig
from streaming.errors import FieldError, StorageError, TooLargeError, TooLongError
from streaming.server.media_probe import probe
from streaming.speech.protocol import MAX_TEXT_CHARS
from streaming.voices.ssml import plain
from streaming.voices.voice import Voice, find_voice

CHUNK_BYTES = 1 << 18
FORM_BYTES = 1 << 16  # of a form beside its files
MAX_PARTS = 32
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
SPEECH = re.compile(r"speech(?:\.([1-9][0-9]?))?")
OPTIONS = {"length", "from", "to", "face", "mix", "quality"}
FIELDS = OPTIONS | {"text", "voice"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A checked form: a video, and the speech as files by face, or as a text for one face."""

    name: str  # of the video, as its owner calls it
    video: Path
    speech: Mapping[str, Path]  # with `text`: where its sound is to be written
    text: str | None
    voice: Voice | None
    options: DubOptions


@dataclass
class _Parts:
    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    count: int = 0


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Errors of the block are about this field."""
    try:
        yield
    except SettingError as error:  # of the command line, where the names of options begin with dashes
        raise FieldError(name, ProtocolError(str(error).replace("--", ""))) from error
    except FieldError:
        raise
    except PersonaStreamError as error:
        raise FieldError(name, error) from error


class Upload:
    """Receives one form into `folder`, within the limits of `config`.

    disk: the thread that writes; the event loop never waits for a disk.
    """

    def __init__(self, folder: Path, config: DubsConfig, stall_s: float, disk: Executor):
        self._folder, self._config, self._stall_s, self._disk = folder, config, stall_s, disk
        self._room_bytes = config.max_bytes

    async def receive(self, request: web.Request, voices: Mapping[str, Voice]) -> Form:
        """Raises FieldError for a field, ProtocolError for another form, HTTPRequestTimeout, ConnectionError."""
        if request.content_type != "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(text=f"{request.content_type}; expected multipart/form-data")
        if (request.content_length or 0) > self._config.max_bytes + FORM_BYTES:
            raise FieldError("video", self._too_large())
        form = self._form(await self._read(request), voices)
        await self._check_media(form)
        return form

    async def _read(self, request: web.Request) -> _Parts:
        parts = _Parts()
        try:
            reader = await request.multipart()
            while (part := await self._wait(reader.next)) is not None:
                parts.count += 1
                if isinstance(part, MultipartReader) or parts.count > MAX_PARTS:
                    raise ProtocolError(f"expected a form of at most {MAX_PARTS} fields, none of them a form itself")
                await self._take(part, parts)
        except (ValueError, HttpProcessingError) as error:
            reason = " ".join(str(error).split())
            raise ProtocolError(f"the body is no form ({reason:.200}); expected multipart/form-data") from error
        return parts

    async def _take(self, part: BodyPartReader, parts: _Parts) -> None:
        name = part.name or ""
        known = name == "video" or SPEECH.fullmatch(name) or name in FIELDS
        if not known or name in parts.files or name in parts.texts:
            found = f"{name!r:.40} twice" if known else f"a field {name!r:.40}"
            raise ProtocolError(
                f"the form has {found}; expected each once: video, speech or speech.1, speech.2, …, or text and voice; "
                f"{', '.join(sorted(OPTIONS))}"
            )
        if name in FIELDS:
            with about(name):
                parts.texts[name] = await self._text(part)
            return
        suffix = Path((part.filename or "").lower()).suffix
        path = self._folder / f"{name}{suffix if SUFFIX.fullmatch(suffix) else ''}"
        parts.files[name], parts.names[name] = path, part.filename or name
        with about(name):
            await self._save(part, path)

    async def _text(self, part: BodyPartReader) -> str:
        data = await self._wait(part.read)
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"not UTF-8 ({error.reason}); expected text") from error

    async def _save(self, part: BodyPartReader, path: Path) -> None:
        loop = asyncio.get_running_loop()
        try:
            with path.open("wb") as file:
                while chunk := await self._wait(lambda: part.read_chunk(CHUNK_BYTES)):
                    self._room_bytes -= len(chunk)
                    if self._room_bytes < 0:
                        raise self._too_large()
                    await loop.run_in_executor(self._disk, file.write, chunk)
                await loop.run_in_executor(self._disk, file.flush)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise StorageError(
                f"the server cannot keep the upload ({error.strerror or error}); try again later, or free its disk"
            ) from error

    async def _wait(self, step: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._stall_s):
                return await step()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"nothing came for {self._stall_s:g} s; send it again") from None

    def _too_large(self) -> TooLargeError:
        most = self._config.max_bytes / 2**20
        return TooLargeError(f"video and sound have more than {most:.4g} MiB, the most that is taken here; cut them")

    def _form(self, parts: _Parts, voices: Mapping[str, Voice]) -> Form:
        texts = parts.texts
        with about("video"):
            if "video" not in parts.files:
                raise ProtocolError("no video; expected a file in the field `video`")
        sounds = {match[1]: path for name, path in parts.files.items() if (match := SPEECH.fullmatch(name))}
        with about("speech"):
            if bool(sounds) == ("text" in texts):
                raise ProtocolError("expected either a sound file in the field `speech`, or a `text`")
            if None in sounds and len(sounds) > 1:
                raise ProtocolError("expected either one `speech`, or `speech.1`, `speech.2`, … for several faces")
        with about("face"):
            face = _number(texts, "face", int) if texts.get("face", "auto") != "auto" else None
            numbered = {int(number): path for number, path in sounds.items() if number is not None}
            sound = sounds.get(None, self._folder / "speech.wav")
            speech = faces_of(numbered or sound, "auto" if face is None else face)
        text = texts.get("text")
        with about("text"):
            if text is not None and not (plain(text).strip() and len(text.strip()) <= MAX_TEXT_CHARS):
                raise ProtocolError(f"text of {len(text.strip())} characters; expected words, at most {MAX_TEXT_CHARS}")
        with about("voice"):
            voice = find_voice(voices, texts.get("voice") or None) if text is not None else None
        return Form(
            name=parts.names["video"],
            video=parts.files["video"],
            speech=speech,
            text=None if text is None else plain(text),
            voice=voice,
            options=self._options(texts),
        )

    def _options(self, texts: Mapping[str, str]) -> DubOptions:
        values: dict[str, Any] = {"report": self._folder / "report.html"}
        for name, choices in (("length", get_args(Length)), ("quality", ("best", "fast"))):
            with about(name):
                if name in texts and texts[name] not in choices:
                    raise ProtocolError(f"{name} {texts[name]!r:.40}; expected {', '.join(choices)}")
                values |= {name: texts[name]} if name in texts else {}
        for name, option in (("from", "from_s"), ("to", "to_s"), ("mix", "mix_db")):
            with about(name):
                values[option] = _number(texts, name, float) if texts.get(name) else None
                DubOptions(**values)
        return DubOptions(**values)

    async def _check_media(self, form: Form) -> None:
        with about("video"):
            found = await probe(form.video)
            if found is None or not found.pictures:
                raise NotAVideoError(f"{form.name}: is no video that can be read; expected MP4, MOV, WebM, MKV or AVI")
            self._check_length(form.name, found.duration_s)
        for number, path in form.speech.items() if form.text is None else ():
            with about("speech" if number == "auto" or len(form.speech) == 1 else f"speech.{number}"):
                found = await probe(path)
                if found is None or not found.sound:
                    raise SpeechFormatError(
                        "the file holds no sound that can be read; expected WAV, FLAC, MP3, M4A or Opus"
                    )
                self._check_length("the sound", found.duration_s)

    def _check_length(self, name: str, seconds: float) -> None:
        most = self._config.max_s
        if seconds > most:
            raise TooLongError(f"{name} lasts {seconds:.0f} s; this server takes at most {most:.0f} s: cut it")


def _number(texts: Mapping[str, str], name: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(texts[name])
    except ValueError as error:
        raise ProtocolError(f"{name} {texts[name]!r:.40}; expected a number") from error

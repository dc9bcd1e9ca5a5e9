"""Forms with files: the files go to the disk as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from engine.errors import NotAVideoError, PersonaStreamError, ProtocolError, SettingError
from streaming.config import JobsConfig
from streaming.errors import FieldError, StorageError, TooLargeError, TooLongError
from streaming.server.media_probe import probe

CHUNK_BYTES = 1 << 18
FORM_BYTES = 1 << 16  # of a form beside its files
MAX_PARTS = 32
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields that a form may have; `expected`: in the words of a refusal."""

    files: re.Pattern[str]
    texts: frozenset[str]
    expected: str


@dataclass
class Parts:
    """The files of a form, the names that their owner gave them, and the texts, by field."""

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
    """Receives one form, or one file, into `folder`, within the limits of `config`.

    disk: the thread that writes; the event loop never waits for a disk.
    """

    def __init__(self, folder: Path, config: JobsConfig, stall_s: float, disk: Executor):
        self._folder, self._config, self._stall_s, self._disk = folder, config, stall_s, disk
        self._room_bytes = config.max_bytes

    async def form(self, request: web.Request, fields: Fields) -> Parts:
        """Raises FieldError for a field, ProtocolError for another form, and for a client that
        leaves, and HTTPRequestTimeout."""
        if request.content_type != "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(text=f"{request.content_type}; expected multipart/form-data")
        if (request.content_length or 0) > self._config.max_bytes + FORM_BYTES:
            raise FieldError("video", self._too_large())
        parts = Parts()
        try:
            reader = await request.multipart()
            while (part := await self._wait(reader.next)) is not None:
                parts.count += 1
                if isinstance(part, MultipartReader) or parts.count > MAX_PARTS:
                    raise ProtocolError(f"expected a form of at most {MAX_PARTS} fields, none of them a form itself")
                await self._take(part, parts, fields)
        except (ValueError, HttpProcessingError) as error:
            reason = " ".join(str(error).split())
            raise ProtocolError(f"the body is no form ({reason:.200}); expected multipart/form-data") from error
        return parts

    async def file(self, request: web.Request, path: Path) -> None:
        """The body is the file. Raises as `form`."""
        await self._save(lambda: request.content.read(CHUNK_BYTES), path)

    async def check_video(self, path: Path, name: str) -> None:
        """Raises NotAVideoError, TooLongError."""
        found = await probe(path)
        if found is None or not found.pictures:
            raise NotAVideoError(f"{name}: is no video that can be read; expected MP4, MOV, WebM, MKV or AVI")
        self.check_length(name, found.duration_s)

    def check_length(self, name: str, seconds: float) -> None:
        """Raises TooLongError."""
        most = self._config.max_s
        if seconds > most:
            raise TooLongError(f"{name} lasts {seconds:.0f} s; this server takes at most {most:.0f} s: cut it")

    async def _take(self, part: BodyPartReader, parts: Parts, fields: Fields) -> None:
        name = part.name or ""
        known = name in fields.texts or fields.files.fullmatch(name)
        if not known or name in parts.files or name in parts.texts:
            found = f"{name!r:.40} twice" if known else f"a field {name!r:.40}"
            raise ProtocolError(f"the form has {found}; expected each once: {fields.expected}")
        if name in fields.texts:
            with about(name):
                parts.texts[name] = await self._text(part)
            return
        suffix = Path((part.filename or "").lower()).suffix
        path = self._folder / f"{name}{suffix if SUFFIX.fullmatch(suffix) else ''}"
        parts.files[name], parts.names[name] = path, part.filename or name
        with about(name):
            await self._save(lambda: part.read_chunk(CHUNK_BYTES), path)

    async def _text(self, part: BodyPartReader) -> str:
        data = await self._wait(part.read)
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"not UTF-8 ({error.reason}); expected text") from error

    async def _save(self, read: Callable[[], Awaitable[bytes]], path: Path) -> None:
        loop = asyncio.get_running_loop()
        try:
            with path.open("wb") as file:
                while chunk := await self._wait(read):
                    self._room_bytes -= len(chunk)
                    if self._room_bytes < 0:
                        raise self._too_large()
                    await loop.run_in_executor(self._disk, file.write, chunk)
                await loop.run_in_executor(self._disk, file.flush)
        except OSError as error:
            raise StorageError(
                f"the server cannot keep the upload ({error.strerror or error}); try again later, or free its disk"
            ) from error

    async def _wait(self, step: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._stall_s):
                return await step()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"nothing came for {self._stall_s:g} s; send it again") from None
        except ConnectionError as error:  # nobody will read the answer
            raise ProtocolError(f"the upload was broken off ({error})") from error

    def _too_large(self) -> TooLargeError:
        most = self._config.max_bytes / 2**20
        return TooLargeError(f"the upload has more than {most:.4g} MiB, the most that is taken here; cut it")

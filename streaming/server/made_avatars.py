"""Avatars that clients made or uploaded: files of a folder, which the engine has loaded while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from engine.avatar.file import SUFFIX, change_texts
from engine.errors import AvatarFileError, CapacityError, OutputError, ProtocolError, UnknownAvatarError
from engine.files import replaced, working_folder
from streaming.errors import AvatarExistsError
from streaming.server.avatars import Avatars

log = logging.getLogger(__name__)

NAME = re.compile(r"[^\W_][\w .-]{0,63}")
MAX_NAME_BYTES = 200  # file systems take 255, with the ending and what a temporary name adds
MAX_CONSENT_CHARS = 2000


def checked_name(text: str) -> str:
    """A name for an avatar, which becomes a file name and a part of addresses. Raises ProtocolError."""
    name = unicodedata.normalize("NFC", text.strip())
    if not NAME.fullmatch(name) or name.endswith(".") or len(name.encode()) > MAX_NAME_BYTES:
        raise ProtocolError(
            f"{name!r:.70} cannot be an avatar's name; expected at most 64 letters, digits, spaces, dots, hyphens and "
            "underscores, the first a letter or digit"
        )
    return name


def checked_consent(text: str) -> str:
    """A note on the speaker's consent. Raises ProtocolError."""
    consent = " ".join(text.split())
    if not consent or len(consent) > MAX_CONSENT_CHARS:
        raise ProtocolError(
            f"consent of {len(consent)} characters; expected who agreed to what and when, in 1 to {MAX_CONSENT_CHARS}"
        )
    return consent


class MadeAvatars:
    """The made avatars by name. An async context that loads those of `folder`, and unloads them at its end.

    folder: None: a temporary one, until the end of the context.
    """

    def __init__(self, folder: Path | None, avatars: Avatars):
        self._folder, self._avatars = folder, avatars
        self._names: set[str] = set()
        self._changing = asyncio.Lock()  # names and files change together
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        if self._folder is None:
            self._folder = self._stack.enter_context(working_folder())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self._folder}: avatars cannot be kept there ({error.strerror or error}); choose another "
                "--enrolments.folder"
            ) from error
        for path in sorted(self._folder.glob(f"[!.]*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            if self._avatars.knows(name):
                log.warning("%s is not served: another avatar has its name", path)
                continue
            try:
                await self._avatars.load(name, path)
                self._names.add(name)
            except AvatarFileError as error:
                log.warning("%s is not served: %s", path, error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._names:
            self._avatars.forget(name)
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def path(self, name: str) -> Path:
        """The file of a made avatar. Raises UnknownAvatarError; HTTPForbidden for an avatar that was not made here."""
        if name in self._names:
            return self._path(name)
        if self._avatars.knows(name):
            raise web.HTTPForbidden(text=f"avatar {name!r} was not made here; only the server's operator can change it")
        raise UnknownAvatarError(f"no avatar {name!r}; GET /v1/avatars lists them")

    def check_free(self, name: str) -> None:
        """Raises AvatarExistsError."""
        if self._avatars.knows(name) or self._path(name).exists():
            raise AvatarExistsError(f"there is an avatar {name!r}; choose another name, or delete that one first")

    async def install(self, name: str, file: Path) -> None:
        """Keep a copy of the finished file and load it.

        Raises AvatarExistsError, OutputError, AvatarFileError for a file that the engine does not take, and
        CapacityError where it is kept and there is no memory to load it now.
        """
        async with self._changing:
            self.check_free(name)
            path = self._path(name)
            copying = asyncio.get_running_loop().run_in_executor(None, _copy, file, path)
            try:
                await asyncio.shield(copying)
                await self._avatars.load(name, path)
            except AvatarFileError as error:
                path.unlink()
                raise AvatarFileError(str(error).replace(str(path), f"{name}{SUFFIX}")) from error
            except asyncio.CancelledError:
                await asyncio.wait([copying])  # a thread cannot be ended
                path.unlink(missing_ok=True)
                raise
            except CapacityError:
                self._names.add(name)
                raise
            self._names.add(name)
            log.info("avatar.made avatar=%s", name)

    async def change(self, name: str, *, new_name: str | None = None, consent: str | None = None) -> None:
        """Raises as `path` and `check_free`, AvatarInUseError, OutputError."""
        async with self._changing:
            path, now = self.path(name), new_name or name
            if now != name:
                self.check_free(now)
            self._avatars.forget(name)  # its readers open the file by name, at the places of its members
            self._names.remove(name)
            try:
                texts = {"name": now} | ({} if consent is None else {"consent": consent})
                await asyncio.to_thread(change_texts, path, self._path(now), texts)
                if now != name:
                    path.unlink()
                name = now
            finally:
                self._names.add(name)
                await self._avatars.load(name, self._path(name))

    async def remove(self, name: str) -> None:
        """Raises as `path`, AvatarInUseError."""
        async with self._changing:
            path = self.path(name)
            self._avatars.forget(name)
            self._names.remove(name)
            path.unlink(missing_ok=True)
            log.info("avatar.removed avatar=%s", name)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}{SUFFIX}"


def _copy(source: Path, target: Path) -> None:
    with replaced(target) as temporary:
        shutil.copyfile(source, temporary)

"""Avatar files by content: known to the director by name, and brought to each machine when a node asks for one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import ray

from engine.avatar.avatar import Avatar
from engine.errors import AvatarFileError
from engine.files import replaced


@dataclass(frozen=True, kw_only=True)
class AvatarSource:
    """An avatar, and where a node gets its file: a path that every machine has, or Ray's object store. key: its name at
    the nodes, which another content under the same name does not share."""

    key: str
    digest: str
    file: Path | ray.ObjectRef[bytes]

    async def fetch(self) -> Path:
        """The file on this machine. Raises AvatarFileError, OutputError."""
        if isinstance(self.file, Path):
            return self.file
        path = cache_folder() / f"{self.digest}.avatar"
        if not path.is_file():
            content = await self.file
            await asyncio.to_thread(self._keep, content, path)
        return path

    def _keep(self, content: bytes, path: Path) -> None:
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise AvatarFileError(f"{self.key} arrived damaged; expected a content of SHA-256 {self.digest}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            temporary.write_bytes(content)


@dataclass(frozen=True, kw_only=True)
class LibraryEntry:
    """An avatar file that the cluster serves, and what the catalog shows of it."""

    name: str
    path: Path
    digest: str
    width: int
    height: int
    thumbnail_jpeg: bytes = field(repr=False)
    on_all_machines: bool

    @classmethod
    def of(cls, name: str, path: Path, shared: Path | None) -> LibraryEntry:
        """Check the file and, where the machines share a folder, copy it there. Raises AvatarFileError, OutputError."""
        avatar = Avatar.open(path.resolve())
        with avatar.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        place = avatar.path
        if shared is not None and not (place := shared.resolve() / f"{digest}.avatar").is_file():
            with replaced(place) as temporary:
                shutil.copyfile(avatar.path, temporary)
        return cls(
            name=name,
            path=place,
            digest=digest,
            width=avatar.width,
            height=avatar.height,
            thumbnail_jpeg=avatar.thumbnail_jpeg,
            on_all_machines=shared is not None,
        )

    @property
    def key(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


class Library:
    """The sources of the director's avatars. A file goes into the object store when it is first asked for."""

    def __init__(self, entries: tuple[LibraryEntry, ...]):
        self.entries = {entry.name: entry for entry in entries}
        self._stored: dict[str, ray.ObjectRef[bytes]] = {}

    def source(self, name: str) -> AvatarSource:
        """Raises AvatarFileError where its file is gone."""
        entry = self.entries[name]
        file = entry.path if entry.on_all_machines else self._stored.get(name) or self._store(entry)
        return AvatarSource(key=entry.key, digest=entry.digest, file=file)

    def _store(self, entry: LibraryEntry) -> ray.ObjectRef[bytes]:
        try:
            self._stored[entry.name] = stored = ray.put(entry.path.read_bytes())
        except OSError as error:
            raise AvatarFileError(f"{entry.path}: cannot be read ({error.strerror}); put it back") from error
        return stored


def cache_folder() -> Path:
    """Files that came through the object store."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personastream" / "avatars"

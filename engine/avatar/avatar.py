"""An opened avatar: one person's tracks, style, references and videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.avatar.file import AvatarData, network_fingerprints, read_avatar, read_member
from engine.avatar.loop import Loop
from engine.avatar.video import VideoReader
from engine.config import Quality


@dataclass(frozen=True, kw_only=True)
class Avatar(AvatarData):
    """An opened `.avatar` file. Tensors are in memory, videos stay in the file until they are opened."""

    path: Path

    @classmethod
    def open(cls, path: Path, *, quality: Quality = "best", networks: Mapping[str, str] | None = None) -> Avatar:
        """Read and check the file, with its references as they are or all at 256 px. `networks`: the fingerprints that
        it must have been made with (default: the embedded ones). Raises AvatarFileError for what cannot be played."""
        path = Path(path)
        stored = read_avatar(path, network_fingerprints() if networks is None else networks)
        avatar = cls(path=path, **vars(stored))
        return avatar if quality == "best" else dataclasses.replace(avatar, bank=avatar.bank.coarse())

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def width(self) -> int:
        return self.manifest.width

    @property
    def height(self) -> int:
        return self.manifest.height

    @property
    def frames(self) -> int:
        return self.manifest.frames

    @property
    def loop(self) -> Loop:
        return self.manifest.loop

    def open_base(self) -> VideoReader:
        """The base video, as footage to read frames from; each reader opens its own."""
        return self._footage("base.mp4")

    def open_idle(self) -> VideoReader:
        """The same frames with a closed, quiet mouth."""
        return self._footage("idle.mp4")

    def report_html(self) -> str:
        with self.path.open("rb") as file:
            return read_member(file, self.spans["report.html"]).decode("utf-8", "replace")

    def _footage(self, member: str) -> VideoReader:
        offset, size = self.spans[member]
        return VideoReader(self.path, offset=offset, size=size, shape=(self.height, self.width), frames=self.frames)


# ---- reading -------------------------------------------------------------------------------------------------

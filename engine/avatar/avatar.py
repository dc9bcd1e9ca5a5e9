"""`Avatar`: one person's tracks, style, references and videos, opened from an `.avatar` file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.avatar.file import AvatarData, Spans, network_fingerprints, read_avatar, read_member
from engine.avatar.loop import Loop
from engine.avatar.video import VideoReader
from engine.config import Quality


@dataclass(frozen=True, kw_only=True)
class Avatar(AvatarData):
    """An opened `.avatar` file. Tensors are in memory; videos stay in the file until they are opened."""

    path: Path
    spans: Spans

    @classmethod
    def open(cls, path: Path, *, quality: Quality = "best", networks: Mapping[str, str] | None = None) -> Avatar:
        """Read and check the file; with quality `fast`, references of 512 px are reduced to 256 px. `networks`: the
        fingerprints of the networks that the file must name (default: the embedded networks).

        Raises AvatarFileError for a file that cannot be played.
        """
        path = Path(path)
        data, spans = read_avatar(path, network_fingerprints() if networks is None else networks)
        avatar = cls(path=path, spans=spans, **vars(data))
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
        """A new reader of the base video. Raises AvatarFileError for a damaged video."""
        return self._video("base.mp4")

    def open_idle(self) -> VideoReader:
        """A new reader of the idle video: the same frames with a closed, quiet mouth. Raises as `open_base`."""
        return self._video("idle.mp4")

    def report_html(self) -> str:
        """The report of the enrolment, a complete HTML page."""
        with self.path.open("rb") as file:
            return read_member(file, self.spans["report.html"]).decode("utf-8", "replace")

    def _video(self, member: str) -> VideoReader:
        offset, size = self.spans[member]
        return VideoReader(self.path, offset=offset, size=size, shape=(self.height, self.width), frames=self.frames)

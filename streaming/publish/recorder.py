"""Recorder: a broadcast into a file that is playable at any moment, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.destination import Status
from streaming.publish.encoders import SoundCodec
from streaming.publish.muxer import Muxer, mux_all

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".flv": "flv", ".ts": "mpegts"}
MOST_RECORDINGS = 10_000


class Recorder:
    """Writes to `path`, or to that name with -2, -3, … where there is a file already: none is ever overwritten."""

    sound = SoundCodec.AAC

    def __init__(self, path: Path, size: tuple[int, int], config: EncoderConfig):
        if path.suffix.lower() not in CONTAINERS:
            raise PublishError(f"{path}: no container of that name; expected one of {', '.join(CONTAINERS)}")
        if not path.parent.is_dir():
            raise PublishError(f"{path}: its folder does not exist; make it first")
        self._path = path
        self._container = CONTAINERS[path.suffix.lower()]
        self._size = size
        self._config = config

    async def send(self, outlet: EncodedStream, status: Status) -> None:
        """Record until the outlet ends; PublishError where the file cannot be written."""
        try:
            with _create(self._path) as file:
                status.place = file.name
                muxer = Muxer(file, self._container, self._size, self._config)
                await mux_all(outlet, muxer, lambda: status.live(os.fstat(file.fileno()).st_size), lambda: None)
        except OSError as error:
            raise PublishError(f"{self._path}: cannot be written ({error.strerror or error})") from error


def _create(path: Path) -> IO[bytes]:
    for number in range(1, MOST_RECORDINGS):
        candidate = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            return candidate.open("xb", buffering=0)
        except FileExistsError:
            continue
    raise PublishError(f"{path}: {MOST_RECORDINGS} recordings have that name; choose another one")

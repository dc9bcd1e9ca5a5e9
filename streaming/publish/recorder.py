"""Recorder: a broadcast into a file that players can open at any time, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.encoders import SoundCodec
from streaming.publish.muxer import Muxer, mux_all
from streaming.publish.status import Status

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".flv": "flv", ".ts": "mpegts"}
MAX_RECORDINGS = 10_000  # with the same name


class Recorder:
    """Writes to `path`, or if that exists to the same name with -2, -3, …: it overwrites no file."""

    sound = SoundCodec.AAC

    def __init__(self, path: Path, size: tuple[int, int], config: EncoderConfig):
        """size: width and height of the encoded picture, px. Raises PublishError."""
        if path.suffix.lower() not in CONTAINERS:
            raise PublishError(f"{path}: unknown container; expected one of {', '.join(CONTAINERS)}")
        if not path.parent.is_dir():
            raise PublishError(f"{path}: its folder does not exist; make it first")
        self._path = path
        self._container = CONTAINERS[path.suffix.lower()]
        self._size = size
        self._config = config

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Record until the stream ends. Raises PublishError if the file cannot be written."""
        try:
            with _create(self._path) as file:
                status.place = file.name
                muxer = Muxer(file, self._container, self._size, self._config)
                await mux_all(stream, muxer, lambda: status.live(os.fstat(file.fileno()).st_size), lambda: None)
        except OSError as error:
            raise PublishError(f"{self._path}: cannot be written ({error.strerror or error})") from error


def _create(path: Path) -> IO[bytes]:
    for number in range(1, MAX_RECORDINGS):
        candidate = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            return candidate.open("xb", buffering=0)
        except FileExistsError:
            continue
    raise PublishError(f"{path}: {MAX_RECORDINGS} recordings have that name; choose another one")

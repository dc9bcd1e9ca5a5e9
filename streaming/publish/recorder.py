"""Recorder: a broadcast into a file that players can open at any time, also after a crash."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import IO

import av
from av.error import FFmpegError

from engine.files import ffmpeg_name
from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.encoders import SoundCodec
from streaming.publish.muxer import Muxer, mux_all
from streaming.publish.status import Status

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".flv": "flv", ".ts": "mpegts"}


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
        self._number = 1  # of the last file

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Record until the stream ends. Raises PublishError if the file cannot be written."""
        try:
            with await asyncio.to_thread(self._create) as file:
                status.place = file.name
                try:
                    muxer = Muxer(file, self._container, self._size, self._config)
                    await mux_all(stream, muxer, lambda: status.live(os.fstat(file.fileno()).st_size), lambda: None)
                finally:
                    await asyncio.to_thread(_remove_if_empty, Path(file.name))
        except OSError as error:
            raise PublishError(f"{self._path}: cannot be written ({error.strerror or error})") from error

    def _create(self) -> IO[bytes]:
        while True:
            stem = self._path.stem if self._number == 1 else f"{self._path.stem}-{self._number}"
            try:
                return self._path.with_stem(stem).open("xb", buffering=0)
            except FileExistsError:
                self._number += 1


def _remove_if_empty(path: Path) -> None:
    """Remove a recording without a picture, such as one that a full disk cut off at its header."""
    try:
        with av.open(ffmpeg_name(path)) as recording:
            if any(packet.size for packet in itertools.islice(recording.demux(video=0), 1)):
                return
    except (FFmpegError, OSError, IndexError):
        pass
    path.unlink(missing_ok=True)

"""Recorder: a broadcast into a file that players can open at any time, also after a crash."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import IO

import av
import av.error

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

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Record until the stream ends. Raises PublishError if the file cannot be written; one without a picture is
        then removed, so that retries on a full disk leave no files."""
        try:
            with _create(self._path) as file:
                status.place = file.name
                muxer = Muxer(file, self._container, self._size, self._config)
                try:
                    await mux_all(stream, muxer, lambda: status.live(os.fstat(file.fileno()).st_size), lambda: None)
                except OSError:
                    if not _holds_a_picture(Path(file.name)):
                        Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise PublishError(f"{self._path}: cannot be written ({error.strerror or error}); make room") from error


def _create(path: Path) -> IO[bytes]:
    """The first name that is free: `path`, then with -2, -3, …"""
    for number in itertools.count(1):
        try:
            return (path if number == 1 else path.with_stem(f"{path.stem}-{number}")).open("xb", buffering=0)
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")


def _holds_a_picture(path: Path) -> bool:
    try:
        with av.open(ffmpeg_name(path), "r") as container:
            return any(packet.size for packet in container.demux(video=0))
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        return False

"""Relay: a broadcast to an RTMP or SRT server, through the system's ffmpeg.

PyAV's wheel has no SRT, and PyAV holds the interpreter's lock while it opens a connection and writes the header: one
RTMP server that does not answer would stop the pictures of every session. A child process can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from functools import lru_cache
from typing import IO

from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.destination import Status, hidden
from streaming.publish.encoders import SoundCodec
from streaming.publish.muxer import STALL_S, Muxer, mux_all

CONTAINERS = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts"}
EXIT_S = 5.0  # for ffmpeg to say goodbye
PROGRESS_S = 1.0


class Relay:
    """Muxes to NUT into a pipe; ffmpeg copies the packets into the protocol's container and sends them.

    Media time goes on over reconnects, so that time stamps only grow.
    """

    sound = SoundCodec.AAC

    def __init__(self, url: str, size: tuple[int, int], config: EncoderConfig):
        self._url = url
        self._scheme = url.partition("://")[0].lower()
        if self._scheme not in ffmpeg_outputs():
            raise PublishError(
                f"{hidden(url)}: no ffmpeg on this machine that sends {self._scheme}; install one "
                "(Debian and Ubuntu: `apt-get install ffmpeg`)"
            )
        self._size = size
        self._config = config
        self._origin_pts: int | None = None

    async def send(self, outlet: EncodedStream, status: Status) -> None:
        """Send until the outlet ends; PublishError with ffmpeg's own words when the connection fails."""
        process, file = await self._start()
        said: list[str] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(process, said))
                tasks.create_task(_follow(process, status))
                await self._feed(process, file, outlet)
        finally:
            if process.returncode is None:  # cancelled, or a fault of ours
                process.kill()
        if process.returncode:
            silent = f"took nothing for {STALL_S:.0f} s" if process.returncode < 0 else "ffmpeg failed without a word"
            raise PublishError(said[-1] if said else f"{hidden(self._url)}: {silent}")

    async def _start(self) -> tuple[asyncio.subprocess.Process, IO[bytes]]:
        """ffmpeg, and the file that it reads."""
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=reading,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is for us; ffmpeg ends when its input does
            )
        except OSError as error:
            os.close(writing)
            raise PublishError(f"ffmpeg does not start ({error.strerror or error})") from error
        finally:
            os.close(reading)
        return process, os.fdopen(writing, "wb", buffering=0)

    async def _feed(self, process: asyncio.subprocess.Process, file: IO[bytes], outlet: EncodedStream) -> None:
        """Send it all units and wait for its end; a connection that breaks or stalls is told by its exit code."""
        with contextlib.suppress(OSError), file:
            muxer = Muxer(file, "nut", self._size, self._config, self._origin_pts)
            try:
                await mux_all(outlet, muxer, lambda: None, process.kill)
            finally:
                self._origin_pts = muxer.origin_pts
        try:
            async with asyncio.timeout(EXIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()

    def _command(self) -> list[str]:
        said = ["-hide_banner", "-nostats", "-loglevel", "error", "-progress", "pipe:1"]
        source = ["-analyzeduration", "0", "-fpsprobesize", "0", "-f", "nut", "-i", "pipe:0"]
        target = ["-map", "0", "-c", "copy", "-copyts", "-f", CONTAINERS[self._scheme]]
        if CONTAINERS[self._scheme] == "flv":
            target += ["-flvflags", "no_duration_filesize", "-rw_timeout", str(round(STALL_S * 1e6))]
        return ["ffmpeg", *said, "-stats_period", str(PROGRESS_S), *source, *target, self._url]

    async def _listen(self, process: asyncio.subprocess.Process, said: list[str]) -> None:
        """Keep the last line of what ffmpeg complains about."""
        assert process.stderr is not None
        async for line in process.stderr:
            if text := line.decode("utf-8", "replace").strip():
                said[:] = [text.replace(self._url, hidden(self._url))]


async def _follow(process: asyncio.subprocess.Process, status: Status) -> None:
    """What ffmpeg reports comes after the connection is there and the header was taken."""
    assert process.stdout is not None
    async for line in process.stdout:
        name, _, value = line.decode().strip().partition("=")
        if name == "total_size" and value.isdigit():
            status.live(int(value))


@lru_cache
def ffmpeg_outputs() -> frozenset[str]:
    """The protocols that the system's ffmpeg can send; none where there is no ffmpeg."""
    try:
        listed = subprocess.run(
            ["ffmpeg", "-hide_banner", "-protocols"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(listed.stdout.partition("Output:")[2].split())

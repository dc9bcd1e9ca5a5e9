"""FfmpegSink: a broadcast to an RTMP or SRT server, through the system's ffmpeg.

PyAV's wheel has no SRT, and PyAV holds the interpreter's lock while it connects and writes the header: an RTMP
server that does not answer would stop the pictures of every session. A child process can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from functools import lru_cache
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.encoders import SoundCodec
from streaming.publish.muxer import STALL_S, Muxer, mux_all
from streaming.publish.status import Status, without_secrets

CONTAINERS = {"rtmp": "flv", "rtmps": "flv", "srt": "mpegts"}
EXIT_S = 5.0  # for ffmpeg to close its connection
PROGRESS_S = 1.0

log = logging.getLogger(__name__)


class FfmpegSink:
    """Muxes to NUT into a pipe; ffmpeg copies the packets into the protocol's container and sends them.

    Media time continues over reconnects: time stamps only grow.
    """

    sound = SoundCodec.AAC

    def __init__(self, url: str, size: tuple[int, int], config: EncoderConfig, stall_s: float = STALL_S):
        """size: width and height of the encoded picture, px.  stall_s: the longest time in which a server may accept
        nothing. Raises PublishError if this machine's ffmpeg cannot send the protocol."""
        self._url = url
        self._scheme = url.partition("://")[0].lower()
        if self._scheme not in ffmpeg_outputs():
            raise PublishError(
                f"{without_secrets(url)}: this machine has no ffmpeg that sends {self._scheme}; install one "
                "(Debian and Ubuntu: `apt-get install ffmpeg`)"
            )
        if self._scheme != "srt" and "@" in urlsplit(url).netloc:  # ffmpeg has no option that takes them from elsewhere
            log.warning(
                "%s: other users of this machine can read the name and the password on ffmpeg's command line; "
                "use a stream key instead, which is not on it",
                without_secrets(url),
            )
        self._size = size
        self._config = config
        self._stall_s = stall_s
        self._origin_pts: int | None = None

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Send until the stream ends. Raises PublishError with ffmpeg's last message when the connection fails."""
        process, file = await self._start()
        messages: list[str] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_messages(process, messages))
                tasks.create_task(_follow_progress(process, status))
                await self._feed(process, file, stream)
        finally:
            if process.returncode is None:  # cancelled, or an error in our code
                process.kill()
        if process.returncode:
            stalled = process.returncode < 0  # killed by `_feed`
            reason = f"it accepted nothing for {self._stall_s:.0f} s" if stalled else "ffmpeg failed without a message"
            raise PublishError(messages[-1] if messages else f"{without_secrets(self._url)}: {reason}")

    async def _start(self) -> tuple[asyncio.subprocess.Process, IO[bytes]]:
        """The ffmpeg process, and the write end of the pipe that it reads."""
        url, options = split_secrets(self._url)
        reading, writing = os.pipe()
        secrets, given = os.pipe()
        os.write(given, "".join(f"{name}={value}\n" for name, value in options.items()).encode())
        os.close(given)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(url, secrets if options else None),
                stdin=reading,
                pass_fds=(secrets,),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches this process alone; ffmpeg ends when its input does
            )
        except OSError as error:
            os.close(writing)
            raise PublishError(f"ffmpeg does not start ({error.strerror or error})") from error
        finally:
            os.close(reading)
            os.close(secrets)
        return process, os.fdopen(writing, "wb", buffering=0)

    async def _feed(self, process: asyncio.subprocess.Process, file: IO[bytes], stream: EncodedStream) -> None:
        """Send all units to ffmpeg and wait for its end; its exit code shows a connection that broke or stalled."""
        with contextlib.suppress(OSError), file:
            muxer = Muxer(file, "nut", self._size, self._config, self._origin_pts)
            try:
                await mux_all(stream, muxer, lambda: None, process.kill, self._stall_s)
            finally:
                self._origin_pts = muxer.origin_pts
        try:
            async with asyncio.timeout(EXIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()

    def _command(self, url: str, secrets: int | None) -> list[str]:
        """secrets: a file descriptor to read options from."""
        output = ["-hide_banner", "-nostats", "-loglevel", "error", "-progress", "pipe:1"]
        source = ["-analyzeduration", "0", "-fpsprobesize", "0", "-f", "nut", "-i", "pipe:0"]
        target = ["-map", "0", "-c", "copy", "-copyts", "-f", CONTAINERS[self._scheme]]
        if CONTAINERS[self._scheme] == "flv":
            target += ["-flvflags", "no_duration_filesize", "-rw_timeout", str(round(self._stall_s * 1e6))]
        hidden = [] if secrets is None else ["-fpre", f"/dev/fd/{secrets}"]
        return ["ffmpeg", *output, "-stats_period", str(PROGRESS_S), *source, *target, *hidden, url]

    async def _read_messages(self, process: asyncio.subprocess.Process, messages: list[str]) -> None:
        """Keep the last line of ffmpeg's standard error, without the secrets of the URL."""
        assert process.stderr is not None
        async for line in process.stderr:
            if text := line.decode("utf-8", "replace").strip():
                shown = text.replace(self._url, without_secrets(self._url))
                messages[:] = [shown.replace(split_secrets(self._url)[0], without_secrets(self._url))]


def split_secrets(url: str) -> tuple[str, dict[str, str]]:
    """The URL without its secrets, for the command line, which all users of this machine can read; and ffmpeg's options
    that hold them: the stream key of RTMP, passphrase and stream id of SRT."""
    parts = urlsplit(url)
    if parts.scheme.lower() in ("rtmp", "rtmps"):
        names = parts.path.split("/")[1:]
        app = 1 if len(names) == 2 else 2  # as ffmpeg splits them: application, its instance, key
        key = "/".join(names[app:])
        if not key:
            return url, {}
        key += f"?{parts.query}" if parts.query else ""
        shown = urlunsplit(parts._replace(path=f"/{names[0]}", query=""))
        return shown, {"rtmp_app": "/".join(names[:app]), "rtmp_playpath": key}
    fields = [field.partition("=") for field in parts.query.split("&") if field]
    hidden = {name: value.replace("+", " ") for name, _, value in fields if name in ("passphrase", "streamid")}
    # As ffmpeg reads them in an address: %XX means a character in the stream id alone.
    options = {name: unquote(value) if name == "streamid" else value for name, value in hidden.items()}
    rest = "&".join(f"{name}={value}" for name, _, value in fields if name not in options)
    return urlunsplit(parts._replace(query=rest)), options


async def _follow_progress(process: asyncio.subprocess.Process, status: Status) -> None:
    """Read ffmpeg's progress, which begins when the connection is open and the header was accepted."""
    assert process.stdout is not None
    async for line in process.stdout:
        name, _, value = line.decode().strip().partition("=")
        if name == "total_size" and value.isdigit():
            status.live(int(value))


@lru_cache
def ffmpeg_outputs() -> frozenset[str]:
    """The protocols that the system's ffmpeg can send; empty without ffmpeg."""
    try:
        protocols = subprocess.run(
            ["ffmpeg", "-hide_banner", "-protocols"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(protocols.stdout.partition("Output:")[2].split())

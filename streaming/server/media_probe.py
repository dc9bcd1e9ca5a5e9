"""What a file of a stranger holds. `python -m streaming.server.media_probe FILE` looks, as a child process of the
server: a file that crashes FFmpeg crashes the child."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from engine.files import ffmpeg_name

PROBE_S = 60.0
# Containers alone: playlists would make FFmpeg open other files, and addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,asf,ogg,wav,w64,mp3,flac,aac,aiff,caf,"
    "amr,ac3,eac3,dv,mxf,ivf,au"
)


@dataclass(frozen=True)
class Contents:
    """Of a media file: whether it holds pictures and sound, and its length."""

    pictures: bool
    sound: bool
    duration_s: float


async def probe(path: Path) -> Contents | None:
    """The contents of a file; None for one that is no media file, crashes FFmpeg, or takes it too long."""
    command = (sys.executable, "-P", "-m", "streaming.server.media_probe", str(path))
    quiet = asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet)
    try:
        async with asyncio.timeout(PROBE_S):
            output, _ = await child.communicate()
    except TimeoutError:
        return None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return Contents(**json.loads(output)) if child.returncode == 0 else None


def look(path: Path) -> Contents:
    """Read all packets: files may state a wrong length, or none. Raises FFmpegError."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(ffmpeg_name(path), options=options) as container:
        pictures = any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)
        first_s, last_s = float("inf"), 0.0
        with contextlib.suppress(FFmpegError):  # damaged there: the work will say
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    first_s = min(first_s, float(packet.pts * packet.time_base))
                    last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return Contents(pictures, bool(container.streams.audio), max(0.0, last_s - first_s))


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(look(Path(sys.argv[1])))))
    except (FFmpegError, OSError, ValueError) as error:
        sys.exit(str(error))

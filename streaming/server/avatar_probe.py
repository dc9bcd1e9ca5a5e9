"""Whether a stranger's avatar file can be played. `python -m streaming.server.avatar_probe` decodes a video of it, as a
child process of the server: a video that crashes FFmpeg crashes the child."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from engine.avatar.video import VideoReader
from engine.errors import AvatarFileError

PROBE_S = 300.0
REFUSED = 2


async def check_avatar(path: Path) -> None:
    """Raises AvatarFileError."""
    from engine.avatar.avatar import Avatar  # with torch, which the child does not need

    avatar = await asyncio.to_thread(Avatar.open, path)
    for video in ("base.mp4", "idle.mp4"):
        numbers = (*avatar.spans[video], avatar.height, avatar.width, avatar.frames)
        command = (sys.executable, "-P", "-m", "streaming.server.avatar_probe", str(path), *map(str, numbers))
        quiet = asyncio.subprocess.DEVNULL
        child = await asyncio.create_subprocess_exec(
            "nice", *command, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet
        )
        try:
            async with asyncio.timeout(PROBE_S):
                reason, _ = await child.communicate()
        except TimeoutError:
            reason = b""
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode != 0:
            why = reason.decode().strip() or f"{path}: {video} cannot be decoded; enrol the speaker again"
            raise AvatarFileError(why)


def look(path: Path, offset: int, size: int, height: int, width: int, frames: int) -> None:
    """Decode the video at `offset`. Raises AvatarFileError."""
    with VideoReader(path, offset=offset, size=size, shape=(height, width), frames=frames) as video:
        for number in range(frames):
            video.read_yuv(number)


if __name__ == "__main__":
    try:
        look(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except AvatarFileError as error:
        print(error)
        sys.exit(REFUSED)

"""Recordings on a disk that is full, or becomes full: nothing empty stays, and what was cut short plays."""

from __future__ import annotations

import contextlib
import resource

import av
import pytest
from publishing import CONFIG, broadcasting, publishing, until

from streaming.publish.recorder import Recorder

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = (512, 512)


@contextlib.contextmanager
def room_for(size_bytes):
    """Within the block no file of this process grows beyond that size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def pictures(path):
    """The number of pictures that decode, up to where the file is cut."""
    count = 0
    with av.open(str(path)) as recording, contextlib.suppress(av.FFmpegError):
        for _ in recording.decode(video=0):
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
async def test_a_disk_without_room_leaves_no_file_behind_each_attempt(engine, tmp_path, suffix):
    path = tmp_path / f"recording.{suffix}"
    async with broadcasting(engine) as (broadcast, _):
        async with publishing(engine, broadcast, str(path), Recorder(path, SIZE, CONFIG)) as destination:
            with room_for(100):
                await until(lambda: destination.status.failures >= 2)
                assert not list(tmp_path.iterdir())
            await until(lambda: path.exists() and path.stat().st_size > 20_000)  # there is room again
        assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert pictures(path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
async def test_a_recording_that_a_full_disk_cuts_short_plays_up_to_there(engine, tmp_path, suffix):
    path = tmp_path / f"recording.{suffix}"
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, str(path), Recorder(path, SIZE, CONFIG)) as destination,
    ):
        with room_for(150_000):
            await until(lambda: destination.status.failures >= 1)
    assert path.exists() and pictures(path) > 0


@pytest.mark.slow
async def test_names_do_not_run_out(engine, tmp_path):
    path = tmp_path / "recording.ts"
    path.touch()
    for number in range(2, 10_100):
        (tmp_path / f"recording-{number}.ts").touch()
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, str(path), Recorder(path, SIZE, CONFIG)) as destination,
    ):
        await until(lambda: destination.status.bytes > 0)
    assert (tmp_path / "recording-10100.ts").stat().st_size > 0

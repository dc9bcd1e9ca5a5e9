"""Publishing to real servers, read back; broken connections, and their effect on others."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from publishing import CONFIG, broadcasting, free_port, publishing, until
from readback import on_grid, read

from streaming.errors import PublishError
from streaming.publish import destination, ffmpeg
from streaming.publish.destination import retry_delay_s
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.publish.ffmpeg import FfmpegSink, split_secrets
from streaming.publish.sinks import make_sink
from streaming.publish.status import State, without_secrets

pytestmark = pytest.mark.asyncio(loop_scope="session")

RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg: apt-get install ffmpeg")
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None or not RTMP_MODULE.exists(),
    reason="needs an RTMP server: apt-get install nginx-light libnginx-mod-rtmp",
)


class Nginx:
    """An RTMP server that can be stopped and started again on the same port."""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"rtmp://127.0.0.1:{self.port}/live/secret-key"
        self.process = None
        self._config = folder / "nginx.conf"
        self._config.write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
            f"load_module {RTMP_MODULE};\nevents {{}}\n"
            f"rtmp {{ server {{ listen 127.0.0.1:{self.port}; "
            "application live { live on; wait_key on; wait_video on; } } }\n"
        )

    async def start(self):
        self.process = subprocess.Popen(["nginx", "-c", str(self._config), "-p", str(self._config.parent)])
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    return
                await asyncio.sleep(0.05)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest_asyncio.fixture(loop_scope="session")
async def nginx(tmp_path):
    server = Nginx(tmp_path)
    await server.start()
    yield server
    server.stop()


def is_for_broadcast(found, seconds):
    """25 fps constant, 48 kHz, AAC and H.264, a key frame at least every 50 pictures."""
    assert found.codecs == {"video": "h264", "audio": "aac"} and found.rate_hz == 48_000
    assert on_grid(found.video_s, 0.04)
    assert np.allclose(np.diff(found.sound_s), 1_024 / 48_000, atol=0.0021)
    assert found.video_s[-1] - found.video_s[0] >= seconds - 0.05
    assert max(np.diff(np.searchsorted(found.video_s, found.keyframes_s)), default=0) <= 50


@pytest.mark.slow
@needs_ffmpeg
@needs_nginx
async def test_rtmp_carries_an_idle_avatar_as_broadcasters_want_it(engine, nginx):
    async with broadcasting(engine) as (broadcast, _), publishing(engine, broadcast, nginx.url) as published:
        await until(lambda: published.status.state is State.LIVE)
        found = await asyncio.to_thread(read, nginx.url, 3)
        is_for_broadcast(found, 3)
        assert abs(found.video_s[0] - found.sound_s[0]) < 0.1
        assert found.width == engine.avatars["speaker"].width
        assert published.status.bytes > 10_000 and published.status.failures == 0
        assert "secret-key" not in str(published.status.to_json())


@pytest.mark.slow
@needs_ffmpeg
@needs_nginx
async def test_rtmp_connects_anew_and_its_time_goes_on(engine, nginx):
    async with broadcasting(engine) as (broadcast, _), publishing(engine, broadcast, nginx.url) as published:
        await until(lambda: published.status.state is State.LIVE)
        before = await asyncio.to_thread(read, nginx.url, 2)
        nginx.stop()
        await until(lambda: published.status.state is State.RETRYING)
        assert published.status.last_error and "secret-key" not in published.status.last_error
        await asyncio.sleep(1)
        await nginx.start()
        await until(lambda: published.status.state is State.LIVE)
        after = await asyncio.to_thread(read, nginx.url, 2)
        is_for_broadcast(after, 2)
        assert after.video_s[0] > before.video_s[-1], "time stamps only grow"
        assert published.status.connections == 2 and published.status.failures >= 1


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("scheme", ["srt", "rtmp"])
async def test_a_listening_ffmpeg_takes_it(engine, tmp_path, scheme):
    port = free_port(socket.SOCK_DGRAM if scheme == "srt" else socket.SOCK_STREAM)
    url, file = f"{scheme}://127.0.0.1:{port}" + "/live/x" * (scheme == "rtmp"), tmp_path / "taken.mkv"
    source = ["-i", f"{url}?mode=listener"] if scheme == "srt" else ["-listen", "1", "-i", url]
    listener = subprocess.Popen(["ffmpeg", "-v", "error", *source, "-c", "copy", "-t", "3", str(file)])
    try:
        async with broadcasting(engine) as (broadcast, _), publishing(engine, broadcast, url) as published:
            await until(lambda: listener.poll() is not None)
            assert published.status.connections >= 1
    finally:
        listener.kill()
        listener.wait()
    found = read(str(file))
    is_for_broadcast(found, 2)
    assert abs(found.video_s[0] - found.sound_s[0]) < 0.1


async def take(broadcast, count):
    """The numbers of `count` units, as a viewer gets them."""
    viewer = broadcast.open(VideoCodec.H264, SoundCodec.OPUS, capacity=count)
    numbers = []
    async with asyncio.timeout(120):
        async for unit in viewer:
            numbers.append(unit.number)
            if len(numbers) == count:
                break
    broadcast.close(viewer)
    return numbers


@pytest.mark.slow
async def test_a_recording_begins_with_both_and_ends_properly(engine, tmp_path):
    files = [tmp_path / f"talk{ending}" for ending in (".mp4", ".mkv", ".flv", ".ts")]
    async with broadcasting(engine) as (broadcast, _), contextlib.AsyncExitStack() as stack:
        recordings = [await stack.enter_async_context(publishing(engine, broadcast, str(file))) for file in files]
        await until(lambda: all(one.status.state is State.LIVE for one in recordings))
        await take(broadcast, 75)
        for file, published in zip(files, recordings, strict=True):
            assert published.status.place == str(file) and published.status.bytes > 0
    for file in files:
        found = read(str(file))
        is_for_broadcast(found, 2.5)
        assert abs(found.video_s[0] - found.sound_s[0]) < 0.045, file
        assert abs(found.video_s[-1] - found.sound_s[-1]) < 0.1, file


async def test_a_recording_is_never_overwritten(engine, tmp_path):
    (tmp_path / "talk.mkv").write_bytes(b"yesterday's")
    file = tmp_path / "talk.mkv"
    async with broadcasting(engine) as (broadcast, _), publishing(engine, broadcast, str(file)) as published:
        await until(lambda: published.status.state is State.LIVE)
        assert published.status.place == str(tmp_path / "talk-2.mkv")
    assert file.read_bytes() == b"yesterday's"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["talk.mp4", "talk.mkv"])
async def test_retries_on_a_full_disk_leave_no_files_and_go_on_when_there_is_room(engine, tmp_path, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with broadcasting(engine) as (broadcast, _):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            async with publishing(engine, broadcast, str(tmp_path / name)) as published:
                await until(lambda: published.status.failures >= 2)
                assert list(tmp_path.iterdir()) == []
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                await until(lambda: published.status.state is State.LIVE)
                await take(broadcast, 50)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read(str(tmp_path / name)).video_s


@pytest.mark.slow
@needs_ffmpeg
async def test_dead_destinations_slow_nobody(engine, tmp_path):
    """One refuses the connection, the other accepts it and then reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = [f"rtmp://127.0.0.1:{port}/live/x" for port in (free_port(), silent.getsockname()[1])]
        sinks = [FfmpegSink(url, (512, 512), CONFIG, stall_s=1.0) for url in urls]
        async with broadcasting(engine) as (broadcast, _), contextlib.AsyncExitStack() as stack:
            refused, stuck = [
                await stack.enter_async_context(publishing(engine, broadcast, url, sink))
                for url, sink in zip(urls, sinks, strict=True)
            ]
            good = await stack.enter_async_context(publishing(engine, broadcast, str(tmp_path / "good.mkv")))
            assert set(np.diff(await take(broadcast, 75))) == {1}, "the viewer lost nothing"
            await until(lambda: refused.status.failures >= 2)
            assert "refused" in refused.status.last_error
            await until(lambda: stuck.status.failures >= 1)
            assert re.search("timed out|accepted nothing for 1 s", stuck.status.last_error) and stuck.status.bytes == 0
            assert good.status.state is State.LIVE and good.status.failures == 0
    assert len(read(str(tmp_path / "good.mkv")).video_s) >= 70


async def test_waiting_doubles_up_to_a_bound_and_is_random():
    delays = [[retry_delay_s(attempt) for _ in range(50)] for attempt in range(1, 40)]
    assert all(0.5 <= delay / max(row) <= 1 for row in delays for delay in row)
    assert min(delays[0]) >= 0.5 and max(delays[0]) <= 1.0
    assert max(delays[-1]) <= destination.MAX_DELAY_S and len(set(delays[0])) > 40


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/x", "expected whip://"),
        ("talk.avi", "expected one of .mp4"),
        ("/nowhere/at/all/talk.mp4", "folder does not exist"),
        ("whip:///path", "no host"),
    ],
)
async def test_a_url_that_no_sink_takes_is_refused_at_once(url, message):
    with pytest.raises(PublishError, match=message):
        make_sink(url, (512, 512), CONFIG)


async def test_without_ffmpeg_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ffmpeg.ffmpeg_outputs.cache_clear()
    try:
        with pytest.raises(PublishError, match="apt-get install ffmpeg"):
            make_sink("srt://127.0.0.1:9", (512, 512), CONFIG)
    finally:
        ffmpeg.ffmpeg_outputs.cache_clear()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtmp://user:pass@a.example/app/key?sign=1", "rtmp://a.example/app/…"),
        ("whips://token@b.example/whip/room", "whips://b.example/whip/room"),
        ("srt://c.example:9000?passphrase=x", "srt://c.example:9000"),
        ("talks/today.mp4", "talks/today.mp4"),
    ],
)
async def test_secrets_of_urls_are_not_shown(url, shown):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("url", "shown", "options"),
    [
        ("rtmp://h/live/key?sign=1/2", "rtmp://h/live", {"rtmp_app": "live", "rtmp_playpath": "key?sign=1/2"}),
        ("rtmps://h:1/app/instance/key", "rtmps://h:1/app", {"rtmp_app": "app/instance", "rtmp_playpath": "key"}),
        ("rtmp://h/live", "rtmp://h/live", {}),
        ("srt://h:9?passphrase=a+b%20&latency=20", "srt://h:9?latency=20", {"passphrase": "a b%20"}),
        ("srt://h:9?streamid=%23!::m=publish", "srt://h:9", {"streamid": "#!::m=publish"}),
    ],
)
async def test_secrets_of_an_address_are_not_on_the_command_line(url, shown, options):
    assert split_secrets(url) == (shown, options)


@needs_ffmpeg
@pytest.mark.parametrize(
    "url, warned",
    [("rtmp://me:word@server/live/key", True), ("rtmp://server/live/key", False), ("srt://me@server:9", False)],
)
async def test_a_password_that_ffmpeg_takes_from_its_command_line_alone_is_warned_of(url, warned, caplog):
    make_sink(url, (64, 64), CONFIG)
    assert ("can read the name and the password" in caplog.text) == warned
    assert "word@" not in caplog.text

"""The standing broadcast of the server, and the publish resource of a session."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
from publishing import until
from readback import on_grid, read
from whep_client import bearer

from engine.errors import UnknownAvatarError
from streaming.config import BroadcastConfig, EncoderConfig
from streaming.errors import PublishError
from streaming.publish.standing import standing_broadcast
from streaming.publish.status import State
from streaming.server.auth import Secrets
from streaming.server.session_events import CLOSED
from streaming.speech.protocol import SpeechText, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[3]
ENCODER = EncoderConfig(codec="libx264")


def has_a_picture(path):
    try:
        with av.open(str(path)) as recording:
            return any(packet.size for packet in itertools.islice(recording.demux(video=0), 1))
    except (av.error.FFmpegError, IndexError):
        return False


@pytest.mark.slow
async def test_a_published_session_needs_no_viewer_and_speaks_by_its_known_token(serving, engine, tmp_path):
    file = tmp_path / "talk.mkv"
    config = BroadcastConfig(publish=(str(file),))
    async with serving(idle_session_s=0.5) as client:  # noqa: SIM117
        async with standing_broadcast(
            client.server.live_sessions, engine.avatars, config, ENCODER, Secrets(broadcast="known")
        ) as live_session:
            session = {"speech": "/v1/sessions/broadcast/speech", "token": "known"}
            await asyncio.sleep(1.5)  # longer than a session without users may live
            async with client.speech(session) as speech:
                await speech.send(SpeechText("greeting", "Good evening, this is the news."))
                await speech.receive_until(Started)
                await asyncio.sleep(1.5)
            (published,) = live_session.destinations.values()
            assert published.status.state is State.LIVE
            async with client.http.get("/metrics") as reply:
                assert 'personastream_publications{state="live"} 1.0' in await reply.text()
    found = read(str(file))
    assert on_grid(found.video_s, 0.04)
    assert np.abs(found.sound[:48_000]).max() < 0.01 and np.abs(found.sound).max() > 0.1


async def test_a_published_session_that_ends_is_opened_again(serving, engine, tmp_path):
    config = BroadcastConfig(publish=(str(tmp_path / "talk.mkv"),), publish_avatar="speaker")
    async with serving() as client:
        live_sessions = client.server.live_sessions
        async with standing_broadcast(live_sessions, engine.avatars, config, ENCODER, Secrets()) as first:
            token = first.token
            await until(lambda: has_a_picture(tmp_path / "talk.mkv"))  # an empty one would go, and its name be free
            await first.close(CLOSED)
            await until(lambda: live_sessions.find("broadcast") not in (None, first))
            await until(lambda: (tmp_path / "talk-2.mkv").exists())
            assert live_sessions.find("broadcast").token == token, "what speaks for it can connect again"


@pytest.mark.slow
async def test_a_published_session_that_finds_the_server_full_is_opened_when_there_is_room(
    serving, engine, tmp_path, max_sessions, caplog
):
    config = BroadcastConfig(publish=(str(tmp_path / "talk.mkv"),))
    async with serving() as client:
        live_sessions = client.server.live_sessions
        async with standing_broadcast(live_sessions, engine.avatars, config, ENCODER, Secrets()) as first:
            await first.close(CLOSED)
            others = [await client.open_session() for _ in range(max_sessions)]
            await until(lambda: "cannot be opened yet" in caplog.text)
            await live_sessions.find(others[0]["id"]).close(CLOSED)
            await until(lambda: live_sessions.find("broadcast") is not None)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (BroadcastConfig(publish=("ftp://example.org",)), PublishError),
        (BroadcastConfig(publish=("talk.mkv",), publish_avatar="nobody"), UnknownAvatarError),
    ],
)
async def test_an_invalid_destination_or_avatar_is_refused_before_anything_is_opened(serving, engine, config, error):
    async with serving() as client:
        with pytest.raises(error):
            async with standing_broadcast(client.server.live_sessions, engine.avatars, config, ENCODER, Secrets()):
                pass
        assert not len(client.server.live_sessions)


async def test_a_session_is_published_over_http(serving, engine, problem):
    """To a WHIP endpoint that does not exist: it is retried, shown without its secret, and ended."""
    async with serving(publish_api=True) as client:
        session = await client.open_session()
        place, auth = f"/v1/sessions/{session['id']}/publish", bearer(session)
        body = {"url": "whip://secret@127.0.0.1:9/room"}
        async with client.http.post(place, json=body, headers=auth) as reply:
            assert reply.status == 201, await reply.text()
            location = reply.headers["Location"]
        live_session = client.server.live_sessions.find(session["id"])
        await until(lambda: any(one.status.failures for one in live_session.destinations.values()))
        async with client.http.get(place, headers=auth) as reply:
            (shown,) = (await reply.json())["publications"]
        assert shown["state"] == "retrying" and shown["url"] == "whip://127.0.0.1:9/room" and shown["last_error"]
        assert shown["location"] == location and "secret" not in str(shown)
        async with client.http.delete(location, headers=auth) as reply:
            assert reply.status == 204
        await until(lambda: not live_session.destinations)
        async with client.http.get(location, headers=auth) as reply:
            await problem(reply, 404, "not-found")


async def test_a_session_is_published_to_urls_alone_and_where_the_server_allows_it(serving, problem, tmp_path):
    async with serving(publish_api=True) as client:
        session = await client.open_session()
        place, auth = f"/v1/sessions/{session['id']}/publish", bearer(session)
        for url in (
            str(tmp_path / "mine.mp4"),
            f"file://{tmp_path}/mine.mp4",
            "gopher://x/y",
            "whip://[h/p",
            "rtmp://h/\0",
        ):
            async with client.http.post(place, json={"url": url}, headers=auth) as reply:
                await problem(reply, 422, "publish")
        async with client.http.post(place, json={"uri": "x"}, headers=auth) as reply:
            await problem(reply, 400, "protocol")
        async with client.http.post(place, json={"url": "whip://h/p"}) as reply:
            await problem(reply, 401, "unauthorized")
        assert not list(tmp_path.iterdir())
    async with serving() as client:
        session = await client.open_session()
        place = f"/v1/sessions/{session['id']}/publish"
        async with client.http.post(place, json={"url": "whip://h/p"}, headers=bearer(session)) as reply:
            assert "--publish-api" in await problem(reply, 403, "forbidden")


def pictures_in(file):
    """The number of complete pictures in a recording that is being written."""
    try:
        with av.open(str(file)) as container:
            return sum(packet.pts is not None for packet in container.demux(video=0))
    except (FileNotFoundError, av.error.FFmpegError):
        return 0


@pytest.mark.slow
async def test_a_server_that_is_killed_leaves_playable_recordings(avatar_path, tmp_path):
    files = [tmp_path / f"talk{ending}" for ending in (".mp4", ".mkv", ".ts", ".flv")]
    command = [sys.executable, "-m", "streaming", "serve", str(avatar_path), "--port", "0"]
    command += [word for file in files for word in ("--publish", str(file))]
    environment = os.environ | {"PERSONASTREAM_BROADCAST_TOKEN": "known"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            url = re.search(r"http://\S+?:\d+", server.stdout.readline()).group()
            assert "known" not in server.stdout.readline()
            asked = f"{url}/v1/sessions/broadcast/publish?token=known"
            async with aiohttp.ClientSession() as http, http.get(asked) as reply:
                assert len((await reply.json())["publications"]) == 4
            async with asyncio.timeout(120):
                while min(map(pictures_in, files)) < 2 * 25:
                    await asyncio.sleep(0.2)
        finally:
            server.send_signal(signal.SIGKILL)
    for file in files:
        found = read(str(file))
        assert len(found.pictures) >= 2 * 25 and on_grid(found.video_s, 0.04), file
        assert found.sound_s[-1] > 1.9, file

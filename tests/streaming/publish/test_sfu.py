"""Publishing into Janus, an SFU in common use: its room is watched by a WebRTC peer as a viewer would.

Janus speaks WHIP only through a companion: examples/janus_whip.py, which runs in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from publishing import broadcasting, free_port, publishing, until
from whep_client import follow_each_other, frames

from examples.janus_whip import Janus, Whip
from streaming.config import EncoderConfig
from streaming.publish.status import State

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("janus") is None, reason="needs Janus: apt-get install janus"),
]

ROOM = 7


class JanusProcess:
    """The process; `api` is its HTTP interface."""

    def __init__(self, folder):
        self._port = free_port()
        self._log = (folder / "janus.log").open("w")
        (folder / "janus.transport.http.jcfg").write_text(
            'general: { json = "compact"; base_path = "/janus"; http = true; '
            f'ip = "127.0.0.1"; port = {self._port} }}\n'
        )
        plugins = next(Path("/usr/lib").glob("*/janus/plugins"))
        (folder / "janus.jcfg").write_text(
            f'general: {{ configs_folder = "{folder}"; plugins_folder = "{plugins}"; '
            f'transports_folder = "{plugins.parent}/transports" }}\n'
            'transports: { disable = "libjanus_mqtt.so,libjanus_nanomsg.so,libjanus_pfunix.so,'
            'libjanus_rabbitmq.so,libjanus_websockets.so" }\n'
        )
        self._process = subprocess.Popen(
            ["janus", "-C", str(folder / "janus.jcfg"), "-F", str(folder)], stdout=self._log, stderr=self._log
        )
        self._http = aiohttp.ClientSession(f"http://127.0.0.1:{self._port}")
        self.api = Janus(self._http)

    async def ready(self):
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with self._http.get("/janus/info") as reply:
                        if reply.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def stop(self):
        await self._http.close()
        self._process.terminate()
        await asyncio.to_thread(self._process.wait, 30)
        self._log.close()


@pytest_asyncio.fixture(loop_scope="session")
async def janus(tmp_path):
    process = JanusProcess(tmp_path)
    try:
        await process.ready()
        room = {"request": "create", "room": ROOM, "videocodec": "h264", "audiocodec": "opus"}
        await process.api.ask(await process.api.handle(), room)
        yield process.api
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def whip_endpoint(whip):
    """The address of a WHIP endpoint before Janus."""
    runner = web.AppRunner(whip.app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"whip://127.0.0.1:{runner.addresses[0][1]}/whip"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def watching(janus, feed):
    """The tracks that a viewer of the room gets."""
    peer, tracks = RTCPeerConnection(RTCConfiguration(iceServers=[])), {}
    peer.on("track", lambda track: tracks.setdefault(track.kind, track))
    handle = await janus.handle()
    try:
        body = {"request": "join", "ptype": "subscriber", "room": ROOM, "streams": [{"feed": feed}]}
        offer = (await janus.ask(handle, body))["jsep"]
        await peer.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        await janus.ask(handle, {"request": "start"}, {"type": "answer", "sdp": peer.localDescription.sdp})
        yield tracks
    finally:
        await peer.close()


@pytest.mark.slow
async def test_viewers_of_an_sfu_see_and_hear_the_avatar_also_late_ones(engine, janus):
    config, whip = EncoderConfig(codec="libx264", keyframe_interval_s=1_000), Whip(janus, ROOM)
    async with (
        broadcasting(engine, config) as (broadcast, _),
        whip_endpoint(whip) as url,
        publishing(engine, broadcast, url) as published,
    ):
        await until(lambda: published.status.state is State.LIVE)
        for _ in range(2):  # the second one comes late: the SFU requests a key frame (PLI), none is due in time
            async with watching(janus, *whip.feeds) as tracks:
                pictures, sound = await asyncio.gather(frames(tracks["video"], 40), frames(tracks["audio"], 80))
                assert np.ptp(pictures[-1].to_ndarray(format="gray")) > 50
                assert follow_each_other(pictures[5:], 3_600)
                assert follow_each_other(sound[5:], 960)
        assert published.status.failures == 0
    assert not whip.feeds, "the end of the publication reaches the SFU"

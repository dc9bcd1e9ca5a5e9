"""Publishing by WHIP into a real WebRTC peer: an endpoint of RFC 9725 in this process, made of aiohttp and aiortc."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from publishing import broadcasting, publishing, until
from rsa_certificate import RsaCertificate
from whep_client import follow_each_other, frames

from streaming.publish.status import State

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Endpoint:
    """Takes publishers; keeps what they send."""

    def __init__(self):
        self.peers, self.tracks, self.tokens, self.deleted = [], {}, [], 0
        self.status, self.answer, self.location = 201, None, "/sessions/1"
        self.certificate, self.setup = None, "active"
        self._runner = None

    async def start(self):
        app = web.Application()
        app.add_routes(
            [web.post("/whip/{room}", self.take), web.delete("/sessions/1", self.delete), web.post("/old", self.moved)]
        )
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self):
        for peer in self.peers:
            await peer.close()
        await self._runner.cleanup()

    async def moved(self, request):
        raise web.HTTPTemporaryRedirect("/whip/room")

    async def take(self, request):
        assert request.content_type == "application/sdp"
        self.tokens.append(request.headers.get("Authorization"))
        if self.status != 201:
            return web.Response(status=self.status, text="no room here")
        if self.answer is not None:
            return web.Response(status=201, text=self.answer, content_type="application/sdp")
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        if self.certificate is not None:
            peer._RTCPeerConnection__certificates = [self.certificate.generateCertificate()]
        self.peers.append(peer)
        self.tracks = {}
        peer.on("track", lambda track: self.tracks.setdefault(track.kind, track))
        self.offer = await request.text()
        offer = self.offer.replace("a=setup:actpass", "a=setup:active") if self.setup == "passive" else self.offer
        await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": self.location}
        return web.Response(status=201, text=peer.localDescription.sdp, content_type="application/sdp", headers=headers)

    async def delete(self, request):
        self.deleted += 1
        await self.peers[-1].close()
        return web.Response()


@pytest_asyncio.fixture(loop_scope="session")
async def endpoint():
    found = Endpoint()
    await found.start()
    yield found
    await found.stop()


@contextlib.asynccontextmanager
async def whip_to(engine, url):
    async with broadcasting(engine) as (broadcast, _), publishing(engine, broadcast, url) as published:
        yield published


@pytest.mark.slow
async def test_an_endpoint_receives_picture_and_sound_and_the_goodbye(engine, endpoint):
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, f"whip://room-token@{endpoint.address}/whip/room") as published,
    ):
        await until(lambda: published.status.state is State.LIVE)
        assert "a=sendonly" in endpoint.offer and "H264/90000" in endpoint.offer and "opus/48000/2" in endpoint.offer
        assert "VP8" not in endpoint.offer
        pictures, sound = await asyncio.gather(
            frames(endpoint.tracks["video"], 50), frames(endpoint.tracks["audio"], 100)
        )
        assert follow_each_other(pictures, 3_600)
        assert follow_each_other(sound, 960)
        assert np.ptp(pictures[-1].to_ndarray(format="gray")) > 50
        assert published.status.bytes > 10_000
    assert endpoint.deleted == 1 and endpoint.tokens == ["Bearer room-token"]


async def test_the_token_comes_from_the_environment_and_redirects_are_followed(engine, endpoint, monkeypatch):
    monkeypatch.setenv("PERSONASTREAM_WHIP_TOKEN", "from-outside")
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, f"whip://{endpoint.address}/old") as published,
    ):
        await until(lambda: published.status.state is State.LIVE)
    assert endpoint.tokens == ["Bearer from-outside"]


@pytest.mark.slow
async def test_a_publisher_comes_back_after_its_peer_left(engine, endpoint):
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, f"whip://{endpoint.address}/whip/room") as published,
    ):
        await until(lambda: published.status.state is State.LIVE)
        await frames(endpoint.tracks["video"], 10)
        await endpoint.peers[0].close()
        await until(lambda: published.status.state is State.RETRYING)
        assert "lost" in published.status.last_error
        await until(lambda: published.status.connections == 2)
        with contextlib.suppress(MediaStreamError):
            assert len(await frames(endpoint.tracks["video"], 10)) == 10
        assert len(endpoint.peers) == 2


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, None, "answered 401 Unauthorized, expected 201: no room here"),
        (503, None, "answered 503"),
        (201, "hello", "the answer does not fit"),
    ],
)
async def test_an_endpoint_that_refuses_is_quoted_and_asked_again(engine, endpoint, status, answer, message):
    endpoint.status, endpoint.answer = status, answer
    async with (
        broadcasting(engine) as (broadcast, _),
        publishing(engine, broadcast, f"whip://token@{endpoint.address}/whip/room") as published,
    ):
        await until(lambda: published.status.failures == 1)
        assert message in published.status.last_error and "token" not in published.status.last_error
        endpoint.status, endpoint.answer = 201, None
        await until(lambda: published.status.state is State.LIVE)


async def test_a_resource_on_another_host_is_deleted_without_the_token(engine, endpoint):
    """Whoever answers may name any address; the token is meant for the endpoint."""
    other, asked = web.Application(), []

    async def delete(request):
        asked.append(request.headers.get("Authorization"))
        return web.Response()

    other.router.add_delete("/sessions/1", delete)
    runner = web.AppRunner(other)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint.location = f"http://127.0.0.1:{runner.addresses[0][1]}/sessions/1"
    try:
        async with whip_to(engine, f"whip://secret@{endpoint.address}/whip/room") as destination:
            await until(lambda: destination.status.state is State.LIVE)
        assert endpoint.tokens == ["Bearer secret"] and asked == [None]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("setup", ["passive", "active"])
async def test_a_server_with_an_rsa_certificate_is_published_to(engine, endpoint, setup):
    endpoint.certificate, endpoint.setup = RsaCertificate, setup
    async with whip_to(engine, f"whip://{endpoint.address}/whip/room") as destination:
        await until(lambda: destination.status.state is State.LIVE)
        await frames(endpoint.tracks["video"], 2)

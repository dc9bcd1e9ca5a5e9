"""Viewers that are not aiortc with its own certificates: RSA certificates, and GStreamer."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from aiortc import RTCSessionDescription
from rsa_certificate import RsaCertificate
from whep_client import SDP, WhepClient, bearer, frames, gone

from streaming.speech.protocol import SpeechText

pytestmark = pytest.mark.asyncio(loop_scope="session")

GSTREAMER_VIEWER = Path(__file__).parent / "gstreamer_viewer.py"
SYSTEM_PYTHON = "/usr/bin/python3"


def with_rsa(whep):
    whep.peer._RTCPeerConnection__certificates = [RsaCertificate.generateCertificate()]
    return whep


async def offer_as(whep, setup):
    """Connect with an offer whose a=setup is `setup`."""
    for kind in ("video", "audio"):
        whep.peer.addTransceiver(kind, direction="recvonly")
    await whep.peer.setLocalDescription(await whep.peer.createOffer())
    offer = whep.peer.localDescription.sdp.replace("a=setup:actpass", f"a=setup:{setup}")
    async with whep.client.http.post(whep.session["whep"], data=offer, headers=SDP | bearer(whep.session)) as reply:
        assert reply.status == 201, await reply.text()
        await whep.peer.setRemoteDescription(RTCSessionDescription(await reply.text(), "answer"))


@pytest.mark.parametrize("setup", ["actpass", "active", "passive"])
async def test_a_peer_with_an_rsa_certificate_watches_in_any_role(serving, setup):
    async with serving() as client:
        whep = with_rsa(WhepClient(client, await client.open_session()))
        try:
            await offer_as(whep, setup)
            await asyncio.gather(frames(whep.tracks["video"], 5), frames(whep.tracks["audio"], 10))
        finally:
            await whep.peer.close()


async def test_a_handshake_that_fails_is_logged_and_counted_with_its_reason(serving, caplog):
    async with serving() as client:
        session = await client.open_session()
        whep = WhepClient(client, session)
        with caplog.at_level(logging.INFO, "streaming.webrtc.viewer"):
            for kind in ("video", "audio"):
                whep.peer.addTransceiver(kind, direction="recvonly")
            await whep.peer.setLocalDescription(await whep.peer.createOffer())
            offer = whep.peer.localDescription.sdp
            digest = offer.partition("a=fingerprint:sha-256 ")[2][:5]
            offer = offer.replace(f"sha-256 {digest}", "sha-256 00:00")
            async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
                assert reply.status == 201, await reply.text()
                await whep.peer.setRemoteDescription(RTCSessionDescription(await reply.text(), "answer"))
            await gone(client.server)
        await whep.peer.close()
        assert "reason=dtls" in caplog.text and "fingerprint" in caplog.text
        async with client.http.get("/metrics") as reply:
            assert 'personastream_viewers_left_total{reason="dtls"} 1.0' in await reply.text()


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["H264", "VP8"])
async def test_gstreamer_sees_and_hears_the_avatar(serving, engine, codec):
    probe = "import gi; gi.require_version('GstWebRTC', '1.0'); from gi.repository import GstWebRTC"
    if not shutil.which(SYSTEM_PYTHON) or subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode:
        pytest.skip("no GStreamer with webrtcbin for the system's Python")
    async with serving() as client:
        session = await client.open_session()
        async with client.speech(session) as speech:
            url = f"{client.server.url}{session['whep']}"
            program = [SYSTEM_PYTHON, str(GSTREAMER_VIEWER), url, session["token"], codec, "40"]
            process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, stderr=sys.stderr)
            await speech.send(SpeechText("a", "Hello, GStreamer, can you hear what I say while you look at me?"))
            async with asyncio.timeout(60):
                output, _ = await process.communicate()
        seen = json.loads(output.decode().splitlines()[-1])
        avatar = engine.avatars["speaker"]
        assert seen["pictures"] >= 40 and seen["size"] == [avatar.width, avatar.height], seen
        assert seen["contrast"] > 50 and seen["loudest"] > 3_000, seen

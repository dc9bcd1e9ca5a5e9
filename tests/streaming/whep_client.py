"""A WHEP client: posts its offer, collects the tracks that arrive and the sender's reports."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtp import RtcpSrPacket

SDP = {"Content-Type": "application/sdp"}


def bearer(session):
    return {"Authorization": f"Bearer {session['token']}"}


async def a_good_offer():
    """The offer of a viewer of picture and sound, whose peer is closed."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    for kind in ("video", "audio"):
        peer.addTransceiver(kind, direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    offer = peer.localDescription.sdp
    await peer.close()
    return offer


class WhepClient:
    """A viewer's end: posts its offer and collects the tracks that arrive."""

    def __init__(self, client, session):
        self.client, self.session = client, session
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.tracks = {}
        self.reports = {}  # by kind: pairs of RTP and NTP time
        self.peer.on("track", lambda track: self.tracks.setdefault(track.kind, track))

    async def connect(self, kinds=("video", "audio"), codec=None, link=None):
        """Offer to receive; `link`, where there is one, is put between the two ends."""
        for kind in kinds:
            transceiver = self.peer.addTransceiver(kind, direction="recvonly")
            self.reports[kind] = _reports_to(transceiver.receiver)
            if codec and kind == "video":
                codecs = transceiver.receiver.getCapabilities(kind).codecs
                transceiver.setCodecPreferences([c for c in codecs if c.mimeType.lower() == codec])
        await self.peer.setLocalDescription(await self.peer.createOffer())
        headers = SDP | bearer(self.session)
        offer = self.peer.localDescription.sdp
        if link:
            offer = link.hide(offer)
        async with self.client.http.post(self.session["whep"], data=offer, headers=headers) as reply:
            assert reply.status == 201, await reply.text()
            assert reply.content_type == "application/sdp"
            self.location, self.etag = reply.headers["Location"], reply.headers["ETag"]
            self.answer = await reply.text()
        if link:
            self.answer = link.put_into(self.answer)
        await self.peer.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))

    async def leave(self):
        async with self.client.http.delete(self.location, headers=bearer(self.session)) as reply:
            return reply.status


def _reports_to(receiver):
    """A list to which the sender reports that reach this receiver are appended."""
    reports, handle = [], receiver._handle_rtcp_packet

    async def listen(packet):
        if isinstance(packet, RtcpSrPacket):
            reports.append((packet.sender_info.rtp_timestamp, packet.sender_info.ntp_timestamp))
        await handle(packet)

    receiver._handle_rtcp_packet = listen  # aiortc shows only the last report, and that without its RTP time
    return reports


@contextlib.asynccontextmanager
async def viewer(client, session, **options):
    whep = WhepClient(client, session)
    try:
        await whep.connect(**options)
        yield whep
    finally:
        await whep.peer.close()


async def frames(track, count, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        return [await track.recv() for _ in range(count)]


def follow_each_other(taken, step):
    """Whether frames go forward on the grid of `step` and of no larger one: a busy machine may lose any number."""
    steps = np.diff([frame.pts for frame in taken])
    return (steps > 0).all() and np.gcd.reduce(steps) == step


async def gone(server, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while any(live_session.viewers for live_session in server.live_sessions):
            await asyncio.sleep(0.05)


async def departures(track, count):
    """Media time (samples at 48 kHz) and loop time of packets as they leave."""
    found, loop = [], asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while len(found) < count:
            packet = await track.recv()
            found.append((float(packet.pts * packet.time_base) * 48_000, loop.time()))
    return np.array(found)

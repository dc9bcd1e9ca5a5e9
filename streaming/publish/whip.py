"""WhipSink: a broadcast to an SFU or a streaming service over WebRTC, as a WHIP client (RFC 9725)."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription
from aiortc.rtcrtpsender import RTCRtpSender
from yarl import URL

from engine.errors import ProtocolError
from streaming.errors import PublishError
from streaming.publish.broadcast import EncodedStream
from streaming.publish.encoders import SoundCodec
from streaming.publish.status import Status, without_secrets
from streaming.race import race
from streaming.webrtc.aiortc_private import dtls_failure, negotiated_codec, new_peer
from streaming.webrtc.offer import BAD_DESCRIPTION
from streaming.webrtc.tracks import TrackPair

SCHEMES = {"whip": "http", "whips": "https"}
TOKEN_VARIABLE = "PERSONASTREAM_WHIP_TOKEN"
CONNECT_TIMEOUT_S = 15.0
HTTP_TIMEOUT = aiohttp.ClientTimeout(total=10)
CODECS = {"video": ("video/h264", "video/rtx"), "audio": ("audio/opus",)}


class WhipSink:
    """Offers H.264 and Opus to `whip://[TOKEN@]host/path` (over http) or `whips://` (over https).

    The bearer token comes from the URL, or from the environment variable PERSONASTREAM_WHIP_TOKEN.
    """

    sound = SoundCodec.OPUS

    def __init__(self, url: str):
        """Raises PublishError for a URL without a host."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise PublishError(f"{without_secrets(url)}: no host; expected {parts.scheme}://[TOKEN@]HOST/PATH")
        user, _, host = parts.netloc.rpartition("@")
        self._endpoint = urlunsplit((SCHEMES[parts.scheme.lower()], host, parts.path or "/", parts.query, ""))
        token = unquote(user.lstrip(":")) or os.environ.get(TOKEN_VARIABLE, "")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._shown_url = without_secrets(url)

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Publish until the stream ends. Raises PublishError if the endpoint refuses or the connection breaks."""
        peer = new_peer(RTCConfiguration(iceServers=[]))
        tracks = TrackPair()
        lost, connected = asyncio.Event(), asyncio.Event()

        def state_changed() -> None:
            if peer.connectionState == "connected":
                connected.set()
            elif peer.connectionState in ("failed", "closed"):
                lost.set()

        peer.on("connectionstatechange", state_changed)
        resource: str | None = None
        try:
            async with aiohttp.ClientSession(timeout=HTTP_TIMEOUT) as http:
                try:
                    resource = await self._negotiate(http, peer, tracks)
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        await race(connected.wait(), lost.wait())
                    if lost.is_set():
                        why = dtls_failure(peer) or "no network path"
                        raise PublishError(f"{self._shown_url}: no connection ({why})")
                    await self._forward(stream, tracks, status, lost)
                finally:
                    if resource is not None:
                        await http.delete(resource, headers=self._credentials(resource))
        except TimeoutError as error:
            raise PublishError(f"{self._shown_url}: no connection within {CONNECT_TIMEOUT_S:.0f} s") from error
        except aiohttp.ClientError as error:
            raise PublishError(f"{self._shown_url}: {error}") from error
        finally:
            await tracks.close()
            await peer.close()

    async def _negotiate(self, http: aiohttp.ClientSession, peer: RTCPeerConnection, tracks: TrackPair) -> str | None:
        """Offer and answer; returns the URL of the WHIP session, which a DELETE ends, if the endpoint names one."""
        transceivers = [_offer(peer, "video", tracks), _offer(peer, "audio", tracks)]
        await peer.setLocalDescription(await peer.createOffer())
        headers = {"Content-Type": "application/sdp", "Accept": "application/sdp"} | self._headers
        # aiohttp follows a 307 or 308 with the same POST, as RFC 9725, 4.5, wants.
        async with http.post(self._endpoint, data=peer.localDescription.sdp, headers=headers) as reply:
            if reply.status != 201:
                body = (await reply.text())[:200]
                raise PublishError(f"{self._shown_url}: answered {reply.status} {reply.reason}, expected 201: {body}")
            answer = await reply.text()
            location = reply.headers.get("Location")
            resource = urljoin(str(reply.url), location) if location else None
        try:
            await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            for transceiver in transceivers:
                tracks.serve(transceiver.sender, negotiated_codec(transceiver))
        except (*BAD_DESCRIPTION, ProtocolError) as error:
            raise PublishError(f"{self._shown_url}: the answer does not fit our offer ({error!r})") from error
        return resource

    def _credentials(self, resource: str) -> dict[str, str]:
        """The token, for a resource of the server that it was given for: an answer may name any other."""
        return self._headers if URL(resource).origin() == URL(self._endpoint).origin() else {}

    async def _forward(self, stream: EncodedStream, tracks: TrackPair, status: Status, lost: asyncio.Event) -> None:
        sent = 0
        tracks.stream = stream
        await stream.skip_waiting()  # they are older than the connection
        status.live(sent)

        async def feed() -> None:
            nonlocal sent
            async for unit in stream:
                await tracks.put(unit, picture=True, sound=True)
                sent += sum(len(sound.data) for sound in unit.sound) + (len(unit.picture.data) if unit.picture else 0)
                status.live(sent)

        ended_by_loss = await race(feed(), lost.wait()) == 1
        if ended_by_loss:
            raise PublishError(f"{self._shown_url}: the connection was lost")


def _offer(peer: RTCPeerConnection, kind: str, tracks: TrackPair) -> RTCRtpTransceiver:
    transceiver = peer.addTransceiver(tracks.picture if kind == "video" else tracks.sound, direction="sendonly")
    codecs = RTCRtpSender.getCapabilities(kind).codecs
    transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType.lower() in CODECS[kind]])
    return transceiver

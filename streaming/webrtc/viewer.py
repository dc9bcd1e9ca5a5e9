"""Viewer: a WebRTC peer that receives a session's broadcast (the media side of WHEP)."""

from __future__ import annotations

import asyncio
import logging
import secrets

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.sdp import SessionDescription, candidate_from_sdp

from engine.errors import ProtocolError, SessionClosedError
from engine.queues import QueueClosed
from streaming.publish.broadcast import Broadcast
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.race import race
from streaming.server.metrics import Metrics
from streaming.webrtc.aiortc_private import negotiated_codec
from streaming.webrtc.ice import Ice
from streaming.webrtc.tracks import TrackPair

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
# The exceptions of aiortc at a description that it cannot read or accept; its parser checks little.
BAD_DESCRIPTION = (
    ValueError,
    StopIteration,
    AssertionError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


class Viewer:
    """Answers one offer, then forwards encoded units from its own stream until either side leaves."""

    def __init__(self, broadcast: Broadcast, metrics: Metrics, ice: Ice, connect_timeout_s: float):
        """connect_timeout_s: `run` ends if the peer has not connected by then."""
        self.id = secrets.token_urlsafe(9)
        self.etag = f'"{secrets.token_hex(8)}"'
        self._broadcast = broadcast
        self._metrics = metrics
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s
        self._reason: str | None = None
        self._joined_s: float | None = None
        self._tracks = TrackPair(metrics.av_skew.observe)
        self._kinds: list[str] = []
        self._video: VideoCodec | None = None
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=ice.server_side(self.id)))
        self._connected = asyncio.Event()
        self._left = asyncio.Event()
        self._peer.on("connectionstatechange", self._state_changed)

    async def answer(self, offer: str) -> str:
        """The SDP answer, with all candidates in it. Raises ProtocolError for an offer that cannot be answered."""
        self._kinds = _offered_kinds(offer)
        transceivers = [self._add_track(kind) for kind in self._kinds]
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
            for transceiver in transceivers:
                codec = negotiated_codec(transceiver)
                self._video = self._tracks.serve(transceiver.sender, codec) or self._video
            self._ice.prepare(self._peer)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except BAD_DESCRIPTION as error:
            raise ProtocolError(
                f"the offer cannot be answered ({error}); expected audio and video to receive, in Opus, H.264 or VP8"
            ) from error
        return str(self._peer.localDescription.sdp)

    async def add_candidates(self, fragment: str) -> None:
        """Add the candidates of an `application/trickle-ice-sdpfrag` body (RFC 8840). Raises ProtocolError."""
        mid = None
        for line in fragment.splitlines():
            name, _, value = line.strip().partition(":")
            if name == "a=mid":
                mid = value
            elif name == "a=end-of-candidates":
                await self._peer.addIceCandidate(None)
            elif name == "a=candidate":
                await self._add_candidate(value, mid)

    async def run(self) -> None:
        """Forward units once the peer is connected, until `leave` or the end of the session; then close the peer."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._connected.wait()
            await race(self._left.wait(), self._forward())
        except TimeoutError:
            self.leave("timeout")
        finally:
            await self.close()
            self._log_leave()

    @property
    def reason(self) -> str:
        """Why the viewer left: `closed` by its peer, path `failed`, no connection in time (`timeout`), `deleted` over
        HTTP, or the `session` ended."""
        return self._reason or "closed"

    def leave(self, reason: str) -> None:
        """Ask `run` to end; the first reason counts."""
        self._reason = self._reason or reason
        self._connected.set()
        self._left.set()

    async def close(self) -> None:
        """Close the peer. Idempotent."""
        self.leave("closed")
        await self._tracks.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._peer.close()
        except TimeoutError:
            log.warning("viewer %s of session %s did not close in time", self.id, self._broadcast.session_id)

    async def _forward(self) -> None:
        try:
            stream = self._broadcast.open(self._video, SoundCodec.OPUS if "audio" in self._kinds else None)
        except SessionClosedError:
            self.leave("session")
            return
        self._tracks.stream = stream
        try:
            async for unit in stream:
                try:
                    await self._tracks.put(unit, picture="video" in self._kinds, sound="audio" in self._kinds)
                except QueueClosed:  # by `close`, which DELETE calls during `run`
                    return
                picture, state = "fresh" if unit.fresh else "repeated", "speaking" if unit.speaking else "idle"
                self._metrics.units.labels(picture, state).inc()
        finally:
            self._broadcast.close(stream)
            self._metrics.dropped.inc(stream.dropped)
            self.leave("session")

    def _add_track(self, kind: str) -> RTCRtpTransceiver:
        track = self._tracks.picture if kind == "video" else self._tracks.sound
        transceiver = self._peer.addTransceiver(track, direction="sendonly")
        codecs = RTCRtpSender.getCapabilities(kind).codecs
        first = {"video": "video/h264", "audio": "audio/opus"}[kind]
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType.lower() != first))
        return transceiver

    async def _add_candidate(self, value: str, mid: str | None) -> None:
        try:
            candidate = candidate_from_sdp(value)
            candidate.sdpMid = mid
            # One transport carries all media (BUNDLE): a candidate without a section belongs to the first.
            candidate.sdpMLineIndex = 0 if mid is None else None
            await self._peer.addIceCandidate(candidate)
        except BAD_DESCRIPTION as error:
            raise ProtocolError(f"candidate {value[:80]!r} does not parse ({error}); expected RFC 8839") from error

    def _state_changed(self) -> None:
        state = self._peer.connectionState
        if state == "connected" and self._joined_s is None:
            self._joined_s = asyncio.get_running_loop().time()
            video = self._video.value if self._video else "none"
            log.info("viewer.join session=%s viewer=%s video=%s", self._broadcast.session_id, self.id, video)
            self._connected.set()
        elif state in ("failed", "closed"):
            self.leave(state)

    def _log_leave(self) -> None:
        watched_s = 0.0 if self._joined_s is None else asyncio.get_running_loop().time() - self._joined_s
        log.info(
            "viewer.leave session=%s viewer=%s reason=%s duration_s=%.1f",
            self._broadcast.session_id,
            self.id,
            self.reason,
            watched_s,
        )


def _offered_kinds(offer: str) -> list[str]:
    """Which of audio and video the peer receives, each once, in the order of the offer. Raises ProtocolError."""
    try:
        description = SessionDescription.parse(offer)
    except BAD_DESCRIPTION as error:
        raise ProtocolError(
            f"the body's {len(offer)} characters do not parse as SDP ({error!r}); expected an offer"
        ) from error
    _check_sections(description)
    media = [section for section in description.media if section.kind in ("audio", "video")]
    media = [section for section in media if section.direction != "inactive"]
    kinds = [section.kind for section in media]
    if not kinds or len(set(kinds)) != len(kinds):
        raise ProtocolError(f"the offer has {kinds or 'no media'}; expected one audio and one video section")
    sending = [section.kind for section in media if section.direction == "sendonly"]
    if sending:
        raise ProtocolError(f"the offer sends {sending}; a viewer receives (a=recvonly)")
    return kinds


def _check_sections(offer: SessionDescription) -> None:
    """Refuse offers that aiortc would connect halfway and then fail to close (RFC 9143). Raises ProtocolError."""
    mids = [section.rtp.muxId for section in offer.media]
    if len(set(mids)) < len(mids):
        raise ProtocolError(f"the sections of the offer have a=mid {mids}; expected a different one for each")
    bundled = [mid for group in offer.group if group.semantic == "BUNDLE" for mid in group.items]
    if unknown := set(bundled) - set(mids):
        raise ProtocolError(f"the offer bundles {unknown}; its sections have a=mid {mids}")

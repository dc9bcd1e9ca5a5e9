"""One viewer: a WebRTC peer that receives a session's broadcast (the media side of WHEP)."""

from __future__ import annotations

import asyncio
import logging
import secrets

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.sdp import SessionDescription, candidate_from_sdp

from engine.errors import ProtocolError, SessionClosedError
from streaming.publish.broadcast import Broadcast
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.server.metrics import Metrics
from streaming.webrtc.ice import Ice
from streaming.webrtc.tracks import TrackPair

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0  # an answer whose peer has not connected by then is given up
CLOSE_TIMEOUT_S = 5.0
# What aiortc raises at a description that it cannot read or take; its parser indexes and asserts freely.
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
    """Answers one offer, then forwards encoded units from its own outlet until either side leaves."""

    def __init__(self, broadcast: Broadcast, metrics: Metrics, ice: Ice):
        self.id = secrets.token_urlsafe(9)
        self.etag = f'"{secrets.token_hex(8)}"'
        self._broadcast = broadcast
        self._metrics = metrics
        self._ice = ice
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
        """The SDP answer with all candidates in it; ProtocolError if the offer cannot be taken."""
        self._kinds = _offered_kinds(offer)
        transceivers = [self._add_track(kind) for kind in self._kinds]
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
            for transceiver in transceivers:
                self._video = self._tracks.serve(transceiver.sender, transceiver._codecs[0].mimeType) or self._video
            self._ice.prepare(self._peer)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except BAD_DESCRIPTION as error:
            raise ProtocolError(
                f"an offer that cannot be answered ({error}); expected audio and video to receive, Opus, H.264 or VP8"
            ) from error
        return str(self._peer.localDescription.sdp)

    async def add_candidates(self, fragment: str) -> None:
        """More candidates of the peer, as an `application/trickle-ice-sdpfrag` body (RFC 8840)."""
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
        """Forward units from the moment the peer is connected; closes the peer at the end, whatever ended it."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connected.wait()
            async with asyncio.TaskGroup() as tasks:
                forwarding = tasks.create_task(self._forward())
                await self._left.wait()
                forwarding.cancel()
        except TimeoutError:
            self.leave("timeout")
        finally:
            await self.close()
            self._log_leave()

    @property
    def reason(self) -> str:
        """Why the viewer left: its peer `closed` or its path `failed`, it did not connect in time (`timeout`), it was
        `deleted`, or the `session` ended."""
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
            outlet = self._broadcast.open(self._video, SoundCodec.OPUS if "audio" in self._kinds else None)
        except SessionClosedError:
            self.leave("session")
            return
        self._tracks.outlet = outlet
        try:
            async for unit in outlet:
                await self._tracks.put(unit, picture="video" in self._kinds, sound="audio" in self._kinds)
                picture, state = "fresh" if unit.fresh else "repeated", "speaking" if unit.speaking else "idle"
                self._metrics.units.labels(picture, state).inc()
        finally:
            self._broadcast.close(outlet)
            self._metrics.dropped.inc(outlet.dropped)
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
            # One transport carries everything (BUNDLE); a peer that names no section means the first.
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
    """Which of audio and video the peer wants to receive, each at most once, in the order of the offer."""
    try:
        found = SessionDescription.parse(offer)
    except BAD_DESCRIPTION as error:
        raise ProtocolError(
            f"{len(offer)} characters that do not parse as SDP ({error!r}); expected an offer"
        ) from error
    _check_sections(found)
    media = [section for section in found.media if section.kind in ("audio", "video")]
    media = [section for section in media if section.direction != "inactive"]
    kinds = [section.kind for section in media]
    if not kinds or len(set(kinds)) != len(kinds):
        raise ProtocolError(f"an offer with {kinds or 'no media'}; expected one audio and one video section")
    sending = [section.kind for section in media if section.direction == "sendonly"]
    if sending:
        raise ProtocolError(f"an offer that sends {sending}; a viewer receives (a=recvonly)")
    return kinds


def _check_sections(offer: SessionDescription) -> None:
    """Refuse what aiortc would connect halfway and then fail to close (RFC 9143)."""
    mids = [section.rtp.muxId for section in offer.media]
    if len(set(mids)) < len(mids):
        raise ProtocolError(f"an offer whose sections have a=mid {mids}; expected one of its own for each")
    bundled = [mid for group in offer.group if group.semantic == "BUNDLE" for mid in group.items]
    if strangers := set(bundled) - set(mids):
        raise ProtocolError(f"an offer that bundles {strangers}; its sections have a=mid {mids}")

"""Viewer: a WebRTC peer that receives a session's broadcast (the media side of WHEP)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from aiortc import RTCConfiguration, RTCRtpTransceiver, RTCSessionDescription
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.sdp import candidate_from_sdp

from engine.errors import ProtocolError, SessionClosedError
from engine.queues import QueueClosed
from streaming.errors import QuotaError
from streaming.publish.broadcast import Broadcast
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.race import race
from streaming.server.metrics import Metrics
from streaming.webrtc.aiortc_private import closed_by_peer, dtls_failure, negotiated_codec, new_peer
from streaming.webrtc.ice import Ice
from streaming.webrtc.offer import BAD_DESCRIPTION, EXPECTED, Offer, is_internal
from streaming.webrtc.tracks import TrackPair

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
MAX_CANDIDATES = 100  # of one viewer: the server sends packets to each
PREFERRED = ("video/h264", "video/vp8", "video/rtx", "audio/opus")


class Viewer:
    """Answers one offer, then forwards encoded units from its own stream until either side leaves."""

    def __init__(self, broadcast: Broadcast, metrics: Metrics, ice: Ice, connect_timeout_s: float, local: bool):
        """connect_timeout_s: `run` ends if the peer has not connected by then.  local: the client is on this host."""
        self.id = secrets.token_urlsafe(9)
        self.etag = f'"{secrets.token_hex(8)}"'
        self._broadcast = broadcast
        self._metrics = metrics
        self._ice = ice
        self._connect_timeout_s, self._local = connect_timeout_s, local
        self._reason: str | None = None
        self._detail = ""  # of a handshake that failed
        self._joined_s: float | None = None
        self._tracks = TrackPair(metrics.av_skew.observe)
        self._kinds: list[str] = []
        self._unresolved: list[tuple[str, str]] = []
        self._candidates = 0  # of the peer, so far
        self._video: VideoCodec | None = None
        self._peer = new_peer(RTCConfiguration(iceServers=ice.server_side(self.id)))
        self._connected = asyncio.Event()
        self._left = asyncio.Event()
        self._peer.on("connectionstatechange", self._state_changed)

    async def answer(self, offer: str) -> str:
        """The SDP answer, with all candidates in it. Raises ProtocolError for an offer that cannot be answered."""
        read = Offer(offer, self._local)
        self._kinds, self._unresolved = read.kinds, read.unresolved
        self._candidates = read.sdp.count("a=candidate:") + len(read.unresolved)
        if self._candidates > MAX_CANDIDATES:
            raise ProtocolError(f"the offer has {self._candidates} candidates; expected at most {MAX_CANDIDATES}")
        transceivers = [self._add_track(kind) for kind in self._kinds]
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp=read.sdp, type="offer"))
            for transceiver in transceivers:
                codec = negotiated_codec(transceiver)
                self._video = self._tracks.serve(transceiver.sender, codec) or self._video
            self._ice.prepare(self._peer)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except BAD_DESCRIPTION as error:
            raise ProtocolError(f"the offer cannot be answered ({error!r}); expected {EXPECTED}") from error
        return read.answer(self._peer.localDescription.sdp, *self._broadcast.picture_size)

    async def add_candidates(self, fragment: str) -> None:
        """Add the candidates of an `application/trickle-ice-sdpfrag` body (RFC 8840). ProtocolError, QuotaError."""
        self._candidates += max(1, fragment.count("a=candidate"))
        if self._candidates > MAX_CANDIDATES:
            raise QuotaError(f"the viewer has {MAX_CANDIDATES} candidates, which is the most; post a new offer")
        mid = None
        for line in fragment.splitlines():
            name, _, value = line.strip().partition(":")
            if name == "a=mid":
                mid = value
            elif name == "a=end-of-candidates":
                await self._peer.addIceCandidate(None)
            elif name == "a=candidate" and (self._local or not is_internal(value)):
                await self._add_candidate(value, mid)

    async def run(self) -> None:
        """Forward units once the peer is connected, until `leave` or the end of the session; then close the peer."""
        try:
            async with asyncio.TaskGroup() as tasks:
                resolving = tasks.create_task(self._resolve())
                try:
                    async with asyncio.timeout(self._connect_timeout_s):
                        await self._connected.wait()
                    await race(self._left.wait(), self._forward())
                except TimeoutError:
                    self.leave("timeout")
                resolving.cancel()
        finally:
            await self.close()
            self._log_leave()

    @property
    def reason(self) -> str:
        """Why the viewer left: `closed` by its peer, a `dtls` handshake that failed, a path that `failed`, no
        connection in time (`timeout`), `deleted` over HTTP, or the `session` ended."""
        return self._reason or "closed"

    def leave(self, reason: str) -> None:
        """Ask `run` to end; the first reason counts."""
        if self._reason is None and reason in ("failed", "timeout"):
            self._detail = dtls_failure(self._peer) or ""
            reason = "dtls" if self._detail else reason
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
        transceiver.setCodecPreferences(
            [codec for name in PREFERRED for codec in codecs if codec.mimeType.lower() == name]
        )
        return transceiver

    async def _resolve(self) -> None:
        """Add the candidates of the offer whose hosts have names (mDNS): to resolve one takes up to a second."""
        if self._unresolved:
            with contextlib.suppress(ProtocolError):
                await asyncio.gather(*(self._add_candidate(value, mid) for mid, value in self._unresolved))
            await self._peer.addIceCandidate(None)

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
            # aiortc reports "closed" for a vanished peer too, if encryption is given up before the path.
            self.leave("closed" if state == "closed" and closed_by_peer(self._peer) else "failed")

    def _log_leave(self) -> None:
        watched_s = 0.0 if self._joined_s is None else asyncio.get_running_loop().time() - self._joined_s
        log.info(
            "viewer.leave session=%s viewer=%s reason=%s duration_s=%.1f%s",
            self._broadcast.session_id,
            self.id,
            self.reason,
            watched_s,
            f" detail={self._detail!r}" if self._detail else "",
        )

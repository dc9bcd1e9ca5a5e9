"""The private attributes of aiortc and aioice that this package reads or replaces: one function for each.

Neither library has a public API for this. At the server's start `check` fails if a new version lacks one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any

from aioice import Candidate, Connection
from aioice.ice import StunProtocol
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver
from aiortc.codecs.base import Encoder
from aiortc.rtcdtlstransport import RTCCertificate, RTCDtlsTransport, SRTPProtectionProfile
from aiortc.rtcrtpsender import RTCRtpSender
from OpenSSL import SSL

from engine.errors import DependencyError

TESTED = {"aiortc": "1.16.0", "aioice": "0.13.0"}

# aiortc offers those for ECDSA alone: as DTLS client it never connects to a peer with an RSA certificate.
CIPHERS = ":".join(
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA")
    for kind in ("ECDSA", "RSA")
)
ALERT, READ = 0x4000, 0x04  # SSL_CB_ALERT, SSL_CB_READ of OpenSSL's info callback
ALERTS = {  # RFC 5246, 7.2.2
    **{40: "handshake_failure", 42: "bad_certificate", 43: "unsupported_certificate", 46: "certificate_unknown"},
    **{47: "illegal_parameter", 48: "unknown_ca", 51: "decrypt_error", 70: "protocol_version"},
    **{71: "insufficient_security", 80: "internal_error"},
}

# (component, addresses, timeout in seconds) -> local candidates of that component
GatherCandidates = Callable[[int, list[str], int], Coroutine[Any, Any, list[Candidate]]]


class Certificate(RTCCertificate):
    """A certificate whose handshakes take RSA peers, and that notes the alert with which one failed."""

    alert: str | None = None

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(CIPHERS.encode())
        context.set_info_callback(self._note)
        return context

    def _note(self, connection: SSL.Connection, where: int, value: int) -> None:
        if where & ALERT and value >> 8 == 2:  # fatal
            sender = "the peer" if where & READ else "this server"
            self.alert = f"{sender} sent the alert {ALERTS.get(value & 0xFF, value & 0xFF)}"


def new_peer(configuration: RTCConfiguration) -> RTCPeerConnection:
    """A peer connection that takes peers with ECDSA and with RSA certificates."""
    peer = RTCPeerConnection(configuration)
    peer._RTCPeerConnection__certificates = [Certificate.generateCertificate()]  # type: ignore[attr-defined]
    return peer


def dtls_failure(peer: RTCPeerConnection) -> str | None:
    """Why the handshake of a peer of `new_peer` failed or is not complete; None while there is no path to handshake on,
    and after success."""
    transports: set[RTCDtlsTransport] = {each.sender.transport for each in peer.getTransceivers()}
    (certificate,) = peer._RTCPeerConnection__certificates  # type: ignore[attr-defined]
    for transport in transports:
        if transport.state == "failed" and transport.encrypted:
            return "the peer's certificate has another fingerprint than its description, or no SRTP profile is common"
        if transport.state in ("connecting", "failed"):
            return certificate.alert or "the peer did not complete it"
    return None


def closed_by_peer(peer: RTCPeerConnection) -> bool:
    """Whether the other end closed the connection, with DTLS's close_notify; else its packets stopped coming."""
    connections = (each.sender.transport._ssl for each in peer.getTransceivers())
    return any(connection and connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN for connection in connections)


def negotiated_codec(transceiver: RTCRtpTransceiver) -> str:
    """The MIME type of the codec that both sides agreed on, in lower case. IndexError if there is none."""
    return str(transceiver._codecs[0].mimeType).lower()


def set_packetizer(sender: RTCRtpSender, packetizer: Encoder) -> None:
    """Have the sender pack its track's packets with `packetizer`; it would open an encoder of its own otherwise."""
    sender._RTCRtpSender__encoder = packetizer  # type: ignore[attr-defined]


def on_keyframe_request(sender: RTCRtpSender, request: Callable[[], None]) -> None:
    """Call `request` at each PLI (RFC 4585, 6.3.1) or FIR (RFC 5104, 4.3.1) of the receiver."""
    sender._send_keyframe = request  # type: ignore[method-assign]


def set_report_time(sender: RTCRtpSender, ntp_time: int) -> None:
    """The wall clock, in units of 2^-32 s, of the last packet in the sender's next report (RFC 3550, 6.4.1).

    The sender itself takes the moment at which that packet left. It overwrites this value with the next packet, so
    call this after each: nothing else in the sender runs between that and its next call of the track's `recv`.
    """
    sender._RTCRtpSender__ntp_timestamp = ntp_time  # type: ignore[attr-defined]


def ice_connection(transceiver: RTCRtpTransceiver) -> Connection:
    """The aioice connection under a transceiver."""
    return transceiver.sender.transport.transport.iceGatherer._connection


def set_gathering(connection: Connection, gather: GatherCandidates) -> None:
    """Have the connection gather its local candidates with `gather`. It binds any free port and knows no NAT itself
    (aioice, issue 47)."""
    connection.get_component_candidates = gather  # type: ignore[method-assign, assignment]


def add_protocol(connection: Connection, protocol: StunProtocol) -> None:
    """Have the connection use `protocol` for its checks and close it at its end."""
    connection._protocols.append(protocol)


async def check() -> None:
    """Raises DependencyError if the installed aiortc or aioice lacks one of these attributes."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = peer.addTransceiver("video", direction="sendonly")
    try:
        missing = _missing(peer, transceiver)
    finally:
        await peer.close()
    if missing:
        installed = " and ".join(f"{name} {version(name)}" for name in TESTED)
        tested = " and ".join(f"{name} {number}" for name, number in TESTED.items())
        pins = " ".join(f"{name}=={number}" for name, number in TESTED.items())
        raise DependencyError(
            f"{installed} have no {', '.join(missing)}, which this server uses; expected {tested}: "
            f"run `pip install {pins}`"
        )


def _missing(peer: RTCPeerConnection, transceiver: RTCRtpTransceiver) -> list[str]:
    """The names of the attributes above that this transceiver, or a part of it, lacks."""
    sender = transceiver.sender
    missing = [
        f"{type(owner).__name__}.{name}"
        for owner, name in (
            (peer, "_RTCPeerConnection__certificates"),
            (RTCCertificate, "_create_ssl_context"),
            (transceiver, "_codecs"),
            (sender, "_RTCRtpSender__encoder"),
            (sender, "_RTCRtpSender__ntp_timestamp"),
            (sender, "_send_keyframe"),
            (sender.transport, "_ssl"),
            (sender.transport.transport.iceGatherer, "_connection"),
        )
        if not hasattr(owner, name)
    ]
    if not hasattr(sender.transport.transport.iceGatherer, "_connection"):
        return missing
    connection = ice_connection(transceiver)
    if not hasattr(connection, "_protocols"):
        missing.append("Connection._protocols")
    gather = getattr(connection, "get_component_candidates", None)
    if gather is None or list(inspect.signature(gather).parameters) != ["component", "addresses", "timeout"]:
        missing.append("Connection.get_component_candidates(component, addresses, timeout)")
    return missing

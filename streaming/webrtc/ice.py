"""Network paths (ICE, RFC 8445): STUN and TURN servers, their credentials, and the server's own candidates."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import ipaddress
import random
import time
from typing import Any

from aioice import Candidate, Connection
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol, server_reflexive_candidate
from aioice.stun import TransactionError
from aiortc import RTCIceServer, RTCPeerConnection
from aiortc.rtcicetransport import parse_stun_turn_uri

from engine.errors import CapacityError, SettingError
from streaming.config import IceConfig
from streaming.server.auth import TURN_VARIABLE
from streaming.webrtc import aiortc_private

STUN_TIMEOUT_S = 2.0


class Ice:
    """The ICE servers of viewers and of the server's peers. Raises SettingError for invalid settings."""

    def __init__(self, config: IceConfig, secret: str | None):
        for url in (*config.stun, *config.turn):
            _check_url(url, "turn" if url in config.turn else "stun")
        if config.turn and secret is None:
            raise SettingError(
                f"--ice.turn needs the TURN server's `static-auth-secret` in the environment variable {TURN_VARIABLE}"
            )
        if config.server_relay and not config.turn:
            raise SettingError("--ice.server-relay needs a TURN server; name one with --ice.turn")
        if config.public_ip is not None and not _is_address(config.public_ip):
            raise SettingError(f"--ice.public-ip {config.public_ip}; expected an IPv4 or IPv6 address")
        if config.udp_ports is not None and not 1 <= config.udp_ports[0] <= config.udp_ports[1] <= 65_535:
            raise SettingError(f"--ice.udp-ports {config.udp_ports}; expected the first and the last port, 1 to 65535")
        self._config = config
        self._secret = secret

    def servers(self, name: str) -> list[dict[str, Any]]:
        """RTCIceServer dictionaries, as browsers take them, for the client called `name`."""
        servers: list[dict[str, Any]] = [{"urls": [url]} for url in self._config.stun]
        if self._config.turn and self._secret is not None:
            username, credential = turn_credentials(self._secret, name, int(time.time()) + self._config.turn_ttl_s)
            servers.append({"urls": list(self._config.turn), "username": username, "credential": credential})
        return servers

    def links(self, name: str) -> list[str]:
        """The same servers as values of the Link header (RFC 9725, 4.6)."""
        links = []
        for server in self.servers(name):
            for url in server["urls"]:
                link = f'<{url}>; rel="ice-server"'
                if "username" in server:
                    link += f'; username="{server["username"]}"; credential="{server["credential"]}"'
                    link += '; credential-type="password"'
                links.append(link)
        return links

    def server_side(self, name: str) -> list[RTCIceServer]:
        """The servers that the server's own peer asks: STUN, and with --ice.server-relay TURN too."""
        servers = self.servers(name)
        return [RTCIceServer(**s) for s in servers if "username" not in s or self._config.server_relay]

    def prepare(self, peer: RTCPeerConnection) -> None:
        """Have `peer` use the configured ports and public address. Call it after the offer is set, before gathering."""
        if self._config.public_ip is None and self._config.udp_ports is None:
            return
        for transceiver in peer.getTransceivers():
            connection = aiortc_private.ice_connection(transceiver)
            aiortc_private.set_gathering(connection, _Gathering(connection, self._config).gather)


class _Gathering:
    """aioice's `Connection.get_component_candidates`, with the configured ports and public address."""

    def __init__(self, connection: Connection, config: IceConfig):
        self._connection = connection
        self._config = config
        self._gather_relayed: aiortc_private.GatherCandidates = connection.get_component_candidates

    async def gather(self, component: int, addresses: list[str], timeout: int = 5) -> list[Candidate]:
        """Candidates of this component: host and reflexive ones on `addresses`, and aioice's relayed one.

        Raises CapacityError if all ports are taken.
        """
        bound = [protocol for address in addresses if (protocol := await self._bind(component, address)) is not None]
        relayed = self._gather_relayed(component, [], timeout)
        others = await asyncio.gather(relayed, *(self._reflexive(protocol) for protocol in bound))
        return [protocol.local_candidate for protocol in bound] + [candidate for group in others for candidate in group]

    async def _bind(self, component: int, address: str) -> StunProtocol | None:
        """A socket at `address`; None if the system does not allow it. Raises CapacityError if all ports are taken."""
        first, last = self._config.udp_ports or (0, 0)
        loop = asyncio.get_running_loop()
        for port in random.sample(range(first, last + 1), last + 1 - first):
            try:
                _, protocol = await loop.create_datagram_endpoint(
                    lambda: StunProtocol(self._connection), local_addr=(address, port)
                )
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                return None
            aiortc_private.add_protocol(self._connection, protocol)
            protocol.local_candidate = _candidate(component, "host", *protocol.transport.get_extra_info("sockname")[:2])
            return protocol
        raise CapacityError(
            f"all UDP ports from {first} to {last} are taken at {address}; expected a free one for each viewer. "
            "Widen --ice.udp-ports, or try again when a viewer has left"
        )

    async def _reflexive(self, protocol: StunProtocol) -> list[Candidate]:
        """The public address of the host candidate of `protocol`: the configured one, or a STUN server's answer."""
        local = protocol.local_candidate
        public = self._config.public_ip
        version = ipaddress.ip_address(local.host).version
        if public is not None:
            if ipaddress.ip_address(public).version != version or public == local.host:
                return []
            candidate = _candidate(local.component, "srflx", public, local.port)
            candidate.related_address, candidate.related_port = local.host, local.port
            return [candidate]
        if self._connection.stun_server is None or version != 4:
            return []
        try:
            async with asyncio.timeout(STUN_TIMEOUT_S):
                candidate, _ = await server_reflexive_candidate(protocol, self._connection.stun_server)
        except (TimeoutError, OSError, TransactionError):
            return []
        return [candidate]


def turn_credentials(secret: str, name: str, expires: int) -> tuple[str, str]:
    """Username and password that a TURN server with this shared secret accepts until `expires`, in seconds since 1970.

    draft-uberti-behave-turn-rest-00, 2.2; coturn calls it `use-auth-secret`.
    """
    username = f"{expires}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def _candidate(component: int, kind: str, host: str, port: int) -> Candidate:
    return Candidate(
        foundation=candidate_foundation(kind, "udp", host),
        component=component,
        transport="udp",
        priority=candidate_priority(component, kind),
        host=host,
        port=port,
        type=kind,
    )


def _check_url(url: str, kind: str) -> None:
    try:
        scheme = parse_stun_turn_uri(url)["scheme"]
    except ValueError as error:
        raise SettingError(f"--ice.{kind} {url} ({error}); expected {kind}:host[:port]") from error
    if scheme not in (kind, f"{kind}s"):
        raise SettingError(f"--ice.{kind} {url}; expected {kind}:host[:port]")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

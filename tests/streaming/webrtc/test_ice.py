"""Network paths: credentials, what clients are told, the server's own candidates, and a real TURN server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import socket
import time

import aioice.ice
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from whep_client import SDP, bearer, frames, viewer

from engine.errors import SettingError
from streaming.config import IceConfig
from streaming.server.auth import Secrets
from streaming.webrtc.ice import Ice, turn_credentials

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECRET = "north-pole"
TURN = IceConfig(
    stun=("stun:stun.example.org",), turn=("turn:turn.example.org?transport=udp", "turns:turn.example.org")
)


async def test_credentials_are_what_the_turn_rest_draft_says():
    username, password = turn_credentials(SECRET, "viewer", 1_433_895_918)
    assert username == "1433895918:viewer"
    assert password == base64.b64encode(hmac.digest(SECRET.encode(), username.encode(), hashlib.sha1)).decode()


async def test_clients_are_told_the_servers_in_the_session_and_in_link_headers(serving):
    async with serving(ice=TURN, secrets=Secrets(turn=SECRET)) as client:
        session = await client.open_session()
        stun, turn = session["ice_servers"]
        assert stun == {"urls": ["stun:stun.example.org"]} and turn["urls"] == list(TURN.turn)
        expires, _, name = turn["username"].partition(":")
        assert name == session["id"] and abs(int(expires) - time.time() - 3600) < 60
        assert (turn["username"], turn["credential"]) == turn_credentials(SECRET, name, int(expires))
        async with client.http.options(session["whep"], headers=bearer(session)) as reply:
            links = reply.headers.getall("Link")
        assert links[0] == '<stun:stun.example.org>; rel="ice-server"' and len(links) == 3
        found = re.fullmatch(
            r'<turns:turn\.example\.org>; rel="ice-server"; username="(\d+:\w+)"; credential="([^"]+)"; '
            r'credential-type="password"',
            links[2],
        )
        assert found and found[2] == turn_credentials(SECRET, session["id"], int(found[1].partition(":")[0]))[1]
        async with client.http.options(session["whep"]) as reply:
            assert "Link" not in reply.headers, "credentials are for those who may use the session"


@pytest.mark.parametrize(
    ("config", "secret", "said"),
    [
        (IceConfig(turn=("turn:turn.example.org",)), None, "PERSONASTREAM_TURN_SECRET"),
        (IceConfig(turn=("stun:turn.example.org",)), SECRET, "expected turn:host"),
        (IceConfig(stun=("stun.example.org",)), None, "expected stun:host"),
        (IceConfig(server_relay=True), SECRET, "--ice.turn"),
        (IceConfig(public_ip="my.host"), None, "IPv4 or IPv6"),
        (IceConfig(udp_ports=(50_100, 50_000)), None, "first and the last port"),
    ],
)
async def test_settings_that_cannot_be_are_refused(config, secret, said):
    with pytest.raises(SettingError, match=re.escape(said)):
        Ice(config, secret)


def candidates(sdp, kind):
    """(address, port, related address) of the candidates of that kind."""
    lines = re.findall(rf"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ {kind}(?: raddr (\S+))?", sdp, re.IGNORECASE)
    return [(host, int(port), related) for host, port, related in lines]


async def test_the_servers_candidates_keep_to_their_ports_and_name_the_public_address(serving):
    ice = IceConfig(udp_ports=(50_900, 50_929), public_ip="192.0.2.7")
    async with serving(ice=ice) as client, viewer(client, await client.open_session()) as whep:
        hosts, public = candidates(whep.answer, "host"), candidates(whep.answer, "srflx")
        assert hosts and all(50_900 <= port <= 50_929 for _, port, _ in hosts)
        ipv4 = {(address, port) for address, port, _ in hosts if ":" not in address}
        assert {(related, port) for _, port, related in public} == ipv4
        assert {address for address, _, _ in public} == {"192.0.2.7"}
        await frames(whep.tracks["video"], 5)


def quiet_port():
    """A free UDP port beyond those that the system gives to others, such as the peers of tests beside this one."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000):
        with socket.socket(type=socket.SOCK_DGRAM) as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port
    raise AssertionError("no free port")


async def test_when_all_ports_are_taken_a_viewer_is_refused_and_the_next_is_not(serving, problem):
    port = quiet_port()
    async with serving(ice=IceConfig(udp_ports=(port, port))) as client:
        session = await client.open_session()
        async with viewer(client, session) as first:
            await frames(first.tracks["video"], 2)
            offer = first.peer.localDescription.sdp
            async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
                assert f"ports from {port} to {port} are taken" in await problem(reply, 503, "capacity")
            assert await first.leave() == 200
        async with viewer(client, session) as second:
            await frames(second.tracks["video"], 2)


@contextlib.asynccontextmanager
async def turn_server(tmp_path):
    """A real coturn with a shared secret; yields its URL."""
    if shutil.which("turnserver") is None:
        pytest.skip("needs turnserver: apt-get install coturn")
    addresses = [a for a in aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=False) if ":" not in a]
    if not addresses:
        pytest.skip("needs an IPv4 address that is not loopback")
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind((addresses[0], 0))
        port = free.getsockname()[1]
    options = {
        "listening-ip": addresses[0],
        "relay-ip": addresses[0],
        "listening-port": port,
        "static-auth-secret": SECRET,
        "realm": "example.org",
        "pidfile": tmp_path / "turn.pid",
        "userdb": tmp_path / "turn.db",
        "log-file": "stdout",
    }
    flags = ("use-auth-secret", "no-tls", "no-dtls", "no-cli", "simple-log", "no-multicast-peers")
    command = [f"--{flag}" for flag in flags] + [f"--{name}={value}" for name, value in options.items()]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec("turnserver", "-n", *command, stdout=quiet, stderr=quiet)
    try:
        async with asyncio.timeout(60):
            while not await answers(addresses[0], port):
                assert process.returncode is None, "turnserver ended"
        yield f"turn:{addresses[0]}:{port}?transport=udp"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(host, port):
    """Whether a TCP connection can be made, which coturn takes beside UDP."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        await asyncio.sleep(0.1)
        return False
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("server_relay", [False, True])
async def test_a_viewer_that_can_use_the_relay_alone_gets_pictures(serving, tmp_path, server_relay):
    async with turn_server(tmp_path) as url:
        ice = IceConfig(turn=(url,), server_relay=server_relay)
        async with serving(ice=ice, secrets=Secrets(turn=SECRET)) as client:
            session = await client.open_session()
            (server,) = session["ice_servers"]
            servers = [RTCIceServer(**server)]
            peer = RTCPeerConnection(RTCConfiguration(servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY))
            tracks = {}
            peer.on("track", lambda track: tracks.setdefault(track.kind, track))
            for kind in ("video", "audio"):
                peer.addTransceiver(kind, direction="recvonly")
            await peer.setLocalDescription(await peer.createOffer())
            offer = peer.localDescription.sdp
            assert candidates(offer, "relay") and not candidates(offer, "host")
            async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
                assert reply.status == 201
                assert f'<{url}>; rel="ice-server"' in reply.headers["Link"]
                answer = await reply.text()
            assert bool(candidates(answer, "relay")) == server_relay
            await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            assert (await frames(tracks["video"], 25))[-1].width > 0
            assert len(await frames(tracks["audio"], 25)) == 25
            await peer.close()


async def test_the_turn_server_refuses_what_expired_or_was_made_up(tmp_path):
    async with turn_server(tmp_path) as url:
        expired = turn_credentials(SECRET, "viewer", int(time.time()) - 10)
        made_up = turn_credentials("south-pole", "viewer", int(time.time()) + 60)
        for username, credential in (expired, made_up):
            servers = [RTCIceServer(url, username, credential)]
            peer = RTCPeerConnection(RTCConfiguration(servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY))
            peer.addTransceiver("video", direction="recvonly")
            await peer.setLocalDescription(await peer.createOffer())
            assert not candidates(peer.localDescription.sdp, "relay")
            await peer.close()


async def test_a_stun_server_is_asked_from_the_configured_ports(serving, tmp_path):
    async with turn_server(tmp_path) as url:
        ice = IceConfig(stun=(url.partition("?")[0].replace("turn:", "stun:"),), udp_ports=(50_930, 50_959))
        async with serving(ice=ice) as client, viewer(client, await client.open_session()) as whep:
            ports = {port for address, port, _ in candidates(whep.answer, "host") if ":" not in address}
            seen = candidates(whep.answer, "srflx")
            assert seen and {port for _, port, _ in seen} <= ports and all(50_930 <= port <= 50_959 for port in ports)
            await frames(whep.tracks["video"], 2)

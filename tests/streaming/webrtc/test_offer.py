"""Offers as clients in the wild write them: read, served where they can be, and answered in their own sections."""

from __future__ import annotations

import asyncio
import re

import pytest
from aiortc import RTCSessionDescription
from aiortc.sdp import SessionDescription
from whep_client import SDP, WhepClient, a_good_offer, bearer, frames, gone

from engine.errors import ProtocolError
from streaming.webrtc.offer import Offer, h264_level

HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
FINGERPRINT = ":".join(["AB"] * 32)
TRANSPORT = f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 24}\r\na=setup:actpass\r\na=fingerprint:sha-256 {FINGERPRINT}\r\n"


def section(kind="video", formats="96", *lines, port=9, mid=None, transport=TRANSPORT):
    named = [] if mid is None else [f"a=mid:{mid}"]
    attributes = "".join(f"{line}\r\n" for line in (*named, "a=recvonly", "a=rtcp-mux", *lines))
    return f"m={kind} {port} UDP/TLS/RTP/SAVPF {formats}\r\nc=IN IP4 0.0.0.0\r\n{attributes}{transport}"


OPUS = section("audio", "111", "a=rtpmap:111 opus/48000/2", mid="a")
H264 = ("a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1;profile-level-id=42e01f")


def codecs_of(offer: Offer) -> list[str]:
    """`H264 packetization-mode profile` of the video formats that aiortc is given."""
    (video,) = [media for media in SessionDescription.parse(offer.sdp).media if media.kind == "video"]
    return [
        f"{codec.name} {codec.parameters.get('packetization-mode')} {codec.parameters.get('profile-level-id')}"
        for codec in video.rtp.codecs
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("a=rtpmap:96 H264/90000", "a=fmtp:96 profile-level-id=42e01f; packetization-mode=1"),  # RFC 6184, 8.2.2
        ("a=rtpmap:96 H264/90000", "a=fmtp:96  Profile-Level-ID=42e01f ;\tpacketization-mode=1 ; "),
        ("a=rtpmap:96  H264/90000 ", "a=fmtp:96 packetization-mode=1;profile-level-id=42e01f"),
        ("a=rtpmap:96 H264/90000",),  # GStreamer's default
        ("a=rtpmap:96 H264/90000", "a=fmtp:96 profile-level-id=42e01f"),
    ],
)
def test_h264_is_understood_as_clients_write_it(lines):
    assert codecs_of(Offer(HEAD + section("video", "96", *lines))) == ["H264 1 42e01f"]


def test_h264_without_a_mode_beside_one_with_mode_1_keeps_its_meaning():
    offer = Offer(
        HEAD + section("video", "96 97", *H264, "a=rtpmap:97 H264/90000", "a=fmtp:97 profile-level-id=42e01f")
    )
    assert codecs_of(offer) == ["H264 1 42e01f", "H264 None 42e01f"]


@pytest.mark.parametrize(
    "line",
    [
        "a=fmtp:97 apt=96",  # of a format that is not mapped
        "a=fmtp:96",
        "a=extmap:3/recvonly urn:ietf:params:rtp-hdrext:toffset and more",
        "a=ssrc:7 cname",
        "a=ssrc-group:FID one two",
        "a=X-unknown:",
    ],
)
def test_lines_that_do_not_matter_to_a_viewer_do_no_harm(line):
    assert Offer(HEAD + section("video", "96", *H264, line) + OPUS).kinds == ["video", "audio"]


@pytest.mark.parametrize(
    ("first", "kinds"),
    [
        (section("video", "96", *H264, port=0, mid="v"), ["audio"]),  # turned off by the client
        (section("video", "98", "a=rtpmap:98 H265/90000", mid="v"), ["audio"]),
        (section("video", "96", "a=rtpmap:96 H264/90000", "a=fmtp:96 profile-level-id=640c1f", mid="v"), ["audio"]),
        (section("text", "98", "a=rtpmap:98 t140/1000", mid="v"), ["audio"]),
        (section("audio", "0", mid="v"), ["audio"]),
    ],
)
def test_a_section_that_cannot_be_served_is_rejected_and_the_other_is_served(first, kinds):
    offer = Offer(f"{HEAD}a=group:BUNDLE v a\r\n{first}{OPUS}")
    assert offer.kinds == kinds
    assert "a=group:BUNDLE a\r\n" in offer.sdp and offer.sdp.count("m=") == 1
    answer = offer.answer(f"{HEAD}a=group:BUNDLE a\r\n{OPUS}", 512, 512)
    assert re.findall("^m=([a-z]+) ([0-9]+)", answer, re.MULTILINE) == [(first[2:].split()[0], "0"), ("audio", "9")]
    assert re.findall("^a=mid:(.*)\r$", answer, re.MULTILINE) == ["v", "a"]


def test_a_section_of_a_bundle_takes_the_transport_of_the_first():
    """As webrtcbin and JSEP's max-bundle write it: port 0 is not a rejection there."""
    bare = section("audio", "111", "a=rtpmap:111 opus/48000/2", "a=bundle-only", mid="a", port=0, transport="")
    candidate = "a=candidate:1 1 udp 2122194687 192.0.2.1 50000 typ host"
    offer = Offer(f"{HEAD}a=group:BUNDLE v a\r\n{section('video', '96', *H264, candidate, mid='v')}{bare}")
    assert offer.kinds == ["video", "audio"]
    assert offer.sdp.count("a=ice-ufrag") == offer.sdp.count("a=setup") == offer.sdp.count("a=candidate") == 2


def test_sections_without_a_mid_get_one():
    assert Offer(HEAD + section("video", "96", *H264) + section("audio", "111", "a=rtpmap:111 opus/48000/2")).kinds


@pytest.mark.parametrize(
    ("offer", "named"),
    [
        (
            section("video", "96", "a=rtpmap:96 H264/90000", "a=fmtp:96 profile-level-id=640c1f;packetization-mode=0"),
            "video in H264 640c1f, packetization-mode 0",
        ),
        (section("video", "98 99", "a=rtpmap:98 H265/90000", "a=rtpmap:99 AV1/90000"), "H265 or AV1"),
        (section("audio", "0", "a=rtpmap:0 PCMU/8000"), "audio in PCMU"),
        (section("video", "96", *H264, port=0), "video (turned off)"),
    ],
)
def test_an_offer_of_which_nothing_can_be_served_is_named_with_what_would_do(offer, named):
    with pytest.raises(ProtocolError) as caught:
        Offer(HEAD + offer)
    assert named in str(caught.value)
    assert "42e01f" in str(caught.value) and "VP8" in str(caught.value) and "Opus" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "level"), [((512, 512), 31), ((1280, 720), 31), ((1920, 1080), 40), ((1080, 1920), 40), ((3840, 2160), 51)]
)
def test_the_level_of_the_answer_fits_the_pictures(size, level):
    assert h264_level(*size) == level
    answer = Offer(HEAD + section("video", "96", *H264)).answer(HEAD + section("video", "96", *H264), *size)
    assert f"profile-level-id=42e0{level:02x}" in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"])
def test_candidates_that_lead_into_the_server_are_heeded_for_clients_on_it_alone(host):
    lines = [f"a=candidate:1 1 udp 2122194687 {address} 50000 typ host" for address in (host, "192.0.2.1")]
    text = HEAD + section("video", "96", *H264, *lines)
    assert Offer(text, local=True).sdp.count("a=candidate") == 2
    outside = Offer(text, local=False).sdp
    assert f" {host} 50000" not in outside and " 192.0.2.1 50000" in outside


def test_the_answer_keeps_every_line_of_aiortcs():
    """Repairs of lost packets, for one, are found by their a=ssrc-group."""
    answer = HEAD + section("video", "96", *H264, "a=ssrc-group:FID 1 2", "a=ssrc:1 cname:x", "a=msid:a b")
    assert Offer(HEAD + section("video", "96", *H264)).answer(answer, 512, 512) == answer


@pytest.mark.asyncio(loop_scope="session")
async def test_candidates_of_one_viewer_are_bounded(serving, problem):
    line = "a=candidate:{} 1 udp 2122194687 192.0.2.1 {} typ host\r\n"
    async with serving() as client:
        session = await client.open_session()
        good = await a_good_offer()
        flood = good.replace("a=end-of-candidates", "".join(line.format(n, n) for n in range(1, 200)) + "a=x", 1)
        async with client.http.post(session["whep"], data=flood, headers=SDP | bearer(session)) as reply:
            assert "expected at most 100" in await problem(reply, 400, "protocol")
        trickling = good.replace("a=end-of-candidates\r\n", "")
        async with client.http.post(session["whep"], data=trickling, headers=SDP | bearer(session)) as reply:
            location, etag = reply.headers["Location"], reply.headers["ETag"]
        headers = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": etag} | bearer(session)
        statuses = []
        for n in range(1, 110):
            body = "a=mid:0\r\n" + line.format(n, n)
            async with client.http.patch(location, data=body, headers=headers) as reply:
                statuses.append(reply.status)
        assert statuses[0] == 204 and statuses[-1] == 429 and statuses.count(204) <= 100
        async with client.http.delete(location, headers=bearer(session)) as reply:
            assert reply.status == 200
        await gone(client.server)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_candidate_whose_name_does_not_resolve_does_not_hold_the_answer_back(serving):
    async with serving() as client:
        session = await client.open_session()
        name = "a=candidate:9 1 udp 2122262783 3f1e2d4c-0000-4000-8000-000000000001.local 50009 typ host\r\n"
        offer = (await a_good_offer()).replace("a=end-of-candidates", name + "a=end-of-candidates", 1)
        async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
            assert reply.status == 201, await reply.text()
            location = reply.headers["Location"]
        async with client.http.delete(location, headers=bearer(session)) as reply:
            assert reply.status == 200
        assert Offer(offer).unresolved and ".local" not in Offer(offer).sdp and "end-of" not in Offer(offer).sdp
        await gone(client.server)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("damage", ["port", "codec"])
async def test_a_peer_with_one_section_that_is_rejected_plays_the_other(serving, damage):
    async with serving() as client:
        session = await client.open_session()
        whep = WhepClient(client, session)
        whep.peer.addTransceiver("audio", direction="recvonly")
        await whep.peer.setLocalDescription(await whep.peer.createOffer())
        offer = whep.peer.localDescription.sdp
        video = section("video", "96", *H264, port=0, mid="v")
        if damage == "codec":
            video = section("video", "98", "a=rtpmap:98 H265/90000", mid="v")
        async with client.http.post(session["whep"], data=offer + video, headers=SDP | bearer(session)) as reply:
            assert reply.status == 201, await reply.text()
            answer = await reply.text()
        sound, _, rejected = answer.partition("m=video ")
        assert rejected.startswith("0 ")
        await whep.peer.setRemoteDescription(RTCSessionDescription(sound, "answer"))
        async with asyncio.timeout(30):
            await frames(whep.tracks["audio"], 10)
        await whep.peer.close()

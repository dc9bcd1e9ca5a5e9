"""Viewers over WHEP: two real WebRTC ends in one process."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from whep_client import SDP, WhepClient, a_good_offer, bearer, follow_each_other, frames, gone, viewer

from streaming.config import EncoderConfig
from streaming.speech.protocol import SpeechText, Started

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.slow
async def test_a_viewer_sees_the_avatar_at_25_fps_with_its_size(serving, engine):
    async with serving() as client, viewer(client, await client.open_session()) as whep:
        assert re.search(r"m=video \d+ \S+ (\d+)[\s\S]*?a=rtpmap:\1 H264/90000", whep.answer), "H.264 is preferred"
        assert "opus/48000/2" in whep.answer and "a=candidate" in whep.answer
        pictures = await frames(whep.tracks["video"], 50)
        avatar = engine.avatars["speaker"]
        assert (pictures[-1].width, pictures[-1].height) == (avatar.width, avatar.height)
        assert follow_each_other(pictures, 3_600)
        assert np.ptp(pictures[-1].to_ndarray(format="gray")) > 50


@pytest.mark.slow
async def test_sound_comes_in_20_ms_pieces_without_gaps(serving):
    async with serving() as client, viewer(client, await client.open_session()) as whep:
        sound = await frames(whep.tracks["audio"], 100)
        assert {frame.samples for frame in sound} == {960}
        assert follow_each_other(sound, 960)


@pytest.mark.slow
async def test_speech_is_heard(serving):
    async with serving() as client:
        session = await client.open_session()
        async with viewer(client, session) as whep, client.speech(session) as speech:
            idle = np.concatenate([f.to_ndarray().ravel() for f in await frames(whep.tracks["audio"], 50)])
            assert np.abs(idle.astype(int)).max() < 200
            await speech.send(SpeechText("greeting", "Hello, can you hear me?"))
            await speech.receive_until(Started)
            loudest = 0
            for _ in range(20):  # a viewer on a busy machine may have silence waiting
                spoken = np.concatenate([f.to_ndarray().ravel() for f in await frames(whep.tracks["audio"], 25)])
                loudest = max(loudest, int(np.abs(spoken.astype(int)).max()))
                if loudest > 3_000:
                    break
            assert loudest > 3_000


async def test_vp8_serves_a_peer_without_h264(serving, engine):
    async with serving() as client, viewer(client, await client.open_session(), codec="video/vp8") as whep:
        assert "H264" not in whep.answer
        assert (await frames(whep.tracks["video"], 5))[-1].width == engine.avatars["speaker"].width


@pytest.mark.slow
async def test_viewers_with_and_without_h264_watch_one_session_and_come_late(serving):
    rare = EncoderConfig(keyframe_interval_s=1_000)  # whoever waits for the key frame that is due gets no picture
    async with serving(encoder=rare) as client:
        session = await client.open_session()
        async with viewer(client, session) as one:
            await frames(one.tracks["video"], 40)
            async with viewer(client, session, codec="video/vp8") as two, viewer(client, session) as three:
                shown = await asyncio.gather(*(frames(late.tracks["video"], 10) for late in (two, three)))
                assert all(np.ptp(seen[0].to_ndarray(format="gray")) > 50 for seen in shown), "whole pictures"
                await frames(one.tracks["video"], 25)


async def test_sound_alone_is_served(serving):
    async with serving() as client, viewer(client, await client.open_session(), kinds=["audio"]) as whep:
        assert len(await frames(whep.tracks["audio"], 25)) == 25


@pytest.mark.slow
async def test_several_viewers_of_one_session(serving):
    async with serving() as client:
        session = await client.open_session()
        async with viewer(client, session) as one, viewer(client, session) as two:
            await asyncio.gather(frames(one.tracks["video"], 25), frames(two.tracks["video"], 25))
            assert one.location != two.location
            assert await one.leave() == 200
            await frames(two.tracks["video"], 25)


async def test_delete_ends_the_viewer(serving, problem):
    async with serving() as client, viewer(client, await client.open_session()) as whep:
        await frames(whep.tracks["video"], 2)
        assert await whep.leave() == 200
        with pytest.raises(MediaStreamError):
            await frames(whep.tracks["video"], 1_000)
        await gone(client.server)
        async with client.http.delete(whep.location, headers=bearer(whep.session)) as reply:
            await problem(reply, 404, "not-found")


async def test_a_peer_that_leaves_is_reaped(serving):
    async with serving() as client:
        async with viewer(client, await client.open_session()) as whep:
            await frames(whep.tracks["video"], 2)
        await gone(client.server)


async def test_closing_the_session_ends_its_viewers(serving):
    async with serving() as client:
        session = await client.open_session()
        async with viewer(client, session) as whep:
            await frames(whep.tracks["video"], 2)
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session)) as reply:
                assert reply.status == 204
            with pytest.raises(MediaStreamError):
                await frames(whep.tracks["video"], 1_000)


async def test_nothing_is_left_running_after_viewers_and_sessions(serving):
    async with serving() as client:
        before = asyncio.all_tasks()
        for _ in range(3):
            session = await client.open_session()
            async with viewer(client, session) as whep, client.speech(session) as speech:
                await speech.send(SpeechText("greeting", "Hello."))
                await frames(whep.tracks["video"], 5)
            async with client.http.delete(f"/v1/sessions/{session['id']}", headers=bearer(session)) as reply:
                assert reply.status == 204
        async with asyncio.timeout(30):
            while left := {task for task in asyncio.all_tasks() - before if not keeps_alive(task)}:
                await asyncio.wait(left, timeout=0.1)


def keeps_alive(task):
    """Whether the task is an HTTP connection that waits for its next request."""
    return task.get_coro().__qualname__ == "RequestHandler.start"


async def test_options_say_what_is_taken(serving):
    async with serving() as client:
        session = await client.open_session()
        async with client.http.options(session["whep"]) as reply:
            assert reply.status == 204 and reply.headers["Accept-Post"] == "application/sdp"
        async with client.http.get(session["whep"]) as reply:
            assert reply.status == 405


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        ("", "no media"),
        ("hello", "no media"),
        ("v=0\r\nm=video", "do not parse as SDP"),
        ("v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", "no media"),
    ],
)
async def test_an_offer_that_is_none_is_refused(serving, problem, offer, said):
    async with serving() as client:
        session = await client.open_session()
        async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
            assert said in await problem(reply, 400, "protocol")


async def test_offers_that_a_viewer_does_not_make_are_refused(serving, problem):
    async with serving() as client:
        session = await client.open_session()
        good = await a_good_offer()
        for offer, said in [
            (good.replace("recvonly", "sendonly"), "a viewer receives"),
            (re.sub(r"a=ice-(ufrag|pwd):.*\r\n", "", good), "cannot be answered"),
            (re.sub(r"a=rtpmap:.*\r\n", "", good), "no codec that it names"),
        ]:
            async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
                assert said in await problem(reply, 400, "protocol")
        async with client.http.post(session["whep"], json={"sdp": good}, headers=bearer(session)) as reply:
            await problem(reply, 415, "unsupported-media-type")
        for size in (70_000, 300_000):
            async with client.http.post(session["whep"], data="v" * size, headers=SDP | bearer(session)) as reply:
                detail = await problem(reply, 413, "request-entity-too-large")
                assert "expected at most 65536 bytes" in detail and ("70000" in detail or size > 70_000)
        assert not any(held.viewers for held in client.server.live_sessions)


async def test_an_offer_that_comes_in_two_pieces_is_read_whole(serving):
    async with serving() as client:
        session = await client.open_session()
        offer = (await a_good_offer()).encode()

        async def pieces():
            yield offer[: len(offer) // 2]
            await asyncio.sleep(0.2)  # the server has begun to read by then
            yield offer[len(offer) // 2 :]

        async with client.http.post(session["whep"], data=pieces(), headers=SDP | bearer(session)) as reply:
            assert reply.status == 201, await reply.text()
            answer = await reply.text()
        assert "m=video" in answer and "m=audio" in answer


async def test_a_section_that_is_inactive_is_not_served(serving):
    async with serving() as client:
        session = await client.open_session()
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        tracks = []
        peer.on("track", tracks.append)
        peer.addTransceiver("video", direction="inactive")
        peer.addTransceiver("audio", direction="recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        offer = peer.localDescription.sdp
        async with client.http.post(session["whep"], data=offer, headers=SDP | bearer(session)) as reply:
            assert reply.status == 201, await reply.text()
            await peer.setRemoteDescription(RTCSessionDescription(await reply.text(), "answer"))
        (sound,) = [track for track in tracks if track.kind == "audio"]
        await frames(sound, 25)
        await peer.close()


@pytest.mark.parametrize(("limit", "code"), [("max_session_viewers", "quota"), ("max_viewers", "capacity")])
async def test_viewers_that_come_at_once_do_not_pass_the_limit(serving, limit, code):
    async with serving(**{limit: 2}) as client:
        session = await client.open_session()
        watching = [WhepClient(client, session) for _ in range(4)]
        results = await asyncio.gather(*(whep.connect() for whep in watching), return_exceptions=True)
        assert sum(isinstance(result, AssertionError) and f'"code": "{code}"' in str(result) for result in results) == 2
        assert sum(result is None for result in results) == 2
        for whep in watching:
            await whep.peer.close()


async def test_candidates_trickle_into_the_named_ice_session(serving, problem):
    fragment = "a=ice-ufrag:x\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{}\r\na=end-of-candidates\r\n"
    good = fragment.format("a=candidate:1 1 udp 2122194687 127.0.0.1 50000 typ host")
    async with serving() as client, viewer(client, await client.open_session()) as whep:
        headers = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": whep.etag} | bearer(whep.session)
        async with client.http.patch(whep.location, data=good, headers=headers) as reply:
            assert reply.status == 204
        bad = fragment.format("a=candidate:nonsense")
        async with client.http.patch(whep.location, data=bad, headers=headers) as reply:
            assert "nonsense" in await problem(reply, 400, "protocol")
        async with client.http.patch(whep.location, data=good, headers=headers | {"If-Match": '"other"'}) as reply:
            await problem(reply, 412, "precondition-failed")
        async with client.http.patch(whep.location, data=good, headers=headers | {"If-Match": "*"}) as reply:
            await problem(reply, 422, "unprocessable-entity")
        for tags in (f'"other", {whep.etag}', whep.etag):
            async with client.http.patch(whep.location, data=good, headers=headers | {"If-Match": tags}) as reply:
                assert reply.status == 204
        async with client.http.patch(
            whep.location, data=good, headers=headers | {"If-Match": f"W/{whep.etag}"}
        ) as reply:
            await problem(reply, 412, "precondition-failed")
        unconditional = {name: value for name, value in headers.items() if name != "If-Match"}
        async with client.http.patch(whep.location, data=good, headers=unconditional) as reply:
            assert reply.status == 204  # as whip-whep of npm sends them
        tagged = {"If-Match": whep.etag} | bearer(whep.session)
        async with client.http.patch(whep.location, json={}, headers=tagged) as reply:
            await problem(reply, 415, "unsupported-media-type")
        await frames(whep.tracks["video"], 5)


async def test_an_offer_in_json_is_answered_in_json(serving, problem):
    async with serving() as client:
        session = await client.open_session()
        path = f"/v1/sessions/{session['id']}/offer"
        peer, tracks = RTCPeerConnection(RTCConfiguration(iceServers=[])), {}
        peer.on("track", lambda track: tracks.setdefault(track.kind, track))
        for kind in ("video", "audio"):
            peer.addTransceiver(kind, direction="recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        offer = {"sdp": peer.localDescription.sdp, "type": "offer"}
        for bad in ({}, [], {"sdp": offer["sdp"], "type": "answer"}, {"sdp": 7, "type": "offer"}):
            async with client.http.post(path, json=bad, headers=bearer(session)) as reply:
                assert '{"sdp", "type": "offer"}' in await problem(reply, 400, "protocol")
        async with client.http.post(path, data=offer["sdp"], headers=SDP | bearer(session)) as reply:
            await problem(reply, 415, "unsupported-media-type")
        async with client.http.post(path, json=offer) as reply:
            await problem(reply, 401, "unauthorized")
        async with client.http.post(path, json=offer, headers=bearer(session)) as reply:
            assert reply.status == 201 and reply.headers["ETag"]
            location = reply.headers["Location"]
            await peer.setRemoteDescription(RTCSessionDescription(**await reply.json()))
        await frames(tracks["video"], 5)
        async with client.http.delete(location, headers=bearer(session)) as reply:
            assert reply.status == 200
        await peer.close()


@pytest.mark.slow
async def test_the_skew_of_what_leaves_is_counted(serving):
    async with serving() as client, viewer(client, await client.open_session()) as whep:
        await asyncio.gather(frames(whep.tracks["video"], 50), frames(whep.tracks["audio"], 100))
        async with client.http.get("/metrics") as reply:
            found = dict(re.findall(r"personastream_av_skew_seconds_(count|sum) (\S+)", await reply.text()))
        assert float(found["count"]) >= 40 and 0 <= float(found["sum"]) / float(found["count"]) < 1

"""The two tracks of a viewer of a real session: the packets that leave, and the receiver's feedback."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from publishing import broadcasting
from whep_client import departures

from engine.media import SAMPLES_PER_FRAME
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.webrtc.tracks import H264Packetizer, TrackPair

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def tracks_of(engine, video=VideoCodec.H264):
    tracks = TrackPair()

    async def feed(stream):
        tracks.stream = stream
        async for unit in stream:
            await tracks.put(unit, picture=True, sound=True)

    async with broadcasting(engine) as (broadcast, _), asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(feed(broadcast.open(video, SoundCodec.OPUS, capacity=100)))
        try:
            yield tracks, broadcast
        finally:
            feeding.cancel()


@pytest.mark.slow
async def test_packets_follow_each_other_in_media_time(engine):
    async with tracks_of(engine) as (tracks, _):
        pictures, sound = await asyncio.gather(departures(tracks.picture, 50), departures(tracks.sound, 100))
    assert set(np.diff(np.rint(pictures[:, 0])).astype(int)) == {SAMPLES_PER_FRAME}
    assert set(np.diff(np.rint(sound[:, 0])).astype(int)) == {SAMPLES_PER_FRAME // 2}


async def test_the_bandwidth_estimate_of_a_receiver_reaches_the_stream(engine):
    async with tracks_of(engine) as (tracks, _):
        packetizer = H264Packetizer(tracks)
        await asyncio.gather(departures(tracks.picture, 2), departures(tracks.sound, 4))
        packetizer.target_bitrate = 700_000  # as aiortc's sender does for a REMB
        assert tracks.stream.estimate_bps == packetizer.target_bitrate == 700_000


async def test_a_request_for_a_key_frame_reaches_the_encode(engine):
    async with tracks_of(engine) as (tracks, broadcast):
        watcher = broadcast.open(VideoCodec.H264, None, capacity=50)
        keys = []
        async with asyncio.timeout(60):
            async for unit in watcher:
                keys.append(bool(unit.picture and unit.picture.keyframe))
                if len(keys) == 25:
                    tracks.request_keyframe()  # as aiortc's sender does for a PLI
                if len(keys) == 30:
                    break
        assert not any(keys[13:25]) and any(keys[25:]), "long before the next one is due"

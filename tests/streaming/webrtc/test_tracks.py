"""The two tracks of a viewer of a real session: what leaves, and what is said back."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from whep_client import departures

from engine.media import SAMPLES_PER_FRAME
from streaming.config import EncoderConfig
from streaming.publish.broadcast import Broadcast
from streaming.publish.encoders import SoundCodec, VideoCodec
from streaming.webrtc.tracks import H264Packetizer, TrackPair

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def tracks_of(engine, video=VideoCodec.H264):
    session = engine.open_session("speaker")
    broadcast = Broadcast(session, EncoderConfig(codec="libx264"))
    tracks = TrackPair()

    async def feed(outlet):
        tracks.outlet = outlet
        async for unit in outlet:
            await tracks.put(unit, picture=True, sound=True)

    running = asyncio.create_task(broadcast.run())
    feeding = asyncio.create_task(feed(broadcast.open(video, SoundCodec.OPUS, capacity=100)))
    try:
        yield tracks, broadcast
    finally:
        await session.close()
        for task in (running, feeding):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_packets_follow_each_other_in_media_time(engine):
    async with tracks_of(engine) as (tracks, _):
        pictures, sound = await asyncio.gather(departures(tracks.picture, 50), departures(tracks.sound, 100))
    assert set(np.diff(np.rint(pictures[:, 0])).astype(int)) == {SAMPLES_PER_FRAME}
    assert set(np.diff(np.rint(sound[:, 0])).astype(int)) == {SAMPLES_PER_FRAME // 2}


async def test_what_a_receiver_says_of_its_link_reaches_the_encode(engine):
    async with tracks_of(engine) as (tracks, broadcast):
        packetizer = H264Packetizer(tracks)
        await asyncio.gather(departures(tracks.picture, 2), departures(tracks.sound, 4))
        for wanted_bps, given_bps in ((700_000, 700_000), (10, EncoderConfig().min_bitrate_bps)):
            packetizer.target_bitrate = wanted_bps  # as aiortc's sender does for a REMB
            await asyncio.gather(departures(tracks.picture, 10), departures(tracks.sound, 20))
            assert broadcast.rate_bps(VideoCodec.H264) == given_bps


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

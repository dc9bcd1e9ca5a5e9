"""One encode for all: the units that the streams of a session get, together, late and slowly, and the end."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import av
import numpy as np
import pytest
from publishing import broadcasting

from engine.errors import SessionClosedError
from streaming.config import EncoderConfig
from streaming.publish.broadcast import shared_rate
from streaming.publish.encoders import PictureEncoder, SoundCodec, VideoCodec

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def take(stream, count, timeout_s=60.0):
    found = []
    async with asyncio.timeout(timeout_s):
        async for unit in stream:
            found.append(unit)
            if len(found) == count:
                return found
    raise AssertionError("the stream closed")


def decoded(units, codec="h264"):
    decoder = av.CodecContext.create(codec, "r")
    return sum(len(decoder.decode(av.Packet(unit.picture.data))) for unit in units if unit.picture) + len(
        decoder.decode(None)
    )


async def test_all_streams_of_a_codec_get_the_very_same_packets(engine):
    async with broadcasting(engine) as (broadcast, _):
        streams = [broadcast.open(VideoCodec.H264, SoundCodec.OPUS, capacity=50) for _ in range(4)]
        taken = await asyncio.gather(*(take(stream, 20) for stream in streams))
        for units in taken[1:]:
            assert all(a.picture.data is b.picture.data for a, b in zip(taken[0], units, strict=True))
        assert set(np.diff([unit.number for unit in taken[0]])) == {1}


class Failing(PictureEncoder):
    """Faults at its fifth picture as a graphics card's encoder does whose driver is reset, or for each picture."""

    opened, at = 0, range(5, 6)

    def __init__(self, codec, config):
        super().__init__(codec, config)
        type(self).opened += 1
        self.number, self.pictures = self.opened, 0

    def encode(self, planes, index):
        self.pictures += 1
        if self.pictures in self.at and (self.number == 1 or len(self.at) > 1):
            raise av.error.ExternalError(-542398533, "Generic error in an external library")
        return super().encode(planes, index)


async def test_an_encoder_that_fails_once_is_replaced_and_the_stream_goes_on(engine, monkeypatch):
    monkeypatch.setattr("streaming.publish.broadcast.PictureEncoder", Failing)
    monkeypatch.setattr(Failing, "opened", 0)
    async with broadcasting(engine) as (broadcast, _):
        units = await take(broadcast.open(VideoCodec.H264, None, capacity=50), 12)
    assert Failing.opened == 2
    assert sum(unit.picture.keyframe for unit in units if unit.picture) == 2 and decoded(units) >= 11


async def test_an_encoder_that_hangs_does_not_stop_the_event_loop_when_its_session_ends(engine, monkeypatch):
    released = threading.Event()

    class Hanging(PictureEncoder):
        def encode(self, planes, index):
            released.wait(30)
            return super().encode(planes, index)

    monkeypatch.setattr("streaming.publish.broadcast.PictureEncoder", Hanging)
    try:
        async with asyncio.timeout(10):
            async with broadcasting(engine) as (broadcast, _):
                stream = broadcast.open(VideoCodec.H264, None)
                await asyncio.sleep(0.3)
            assert not [unit async for unit in stream]
    finally:
        released.set()


async def test_a_codec_is_encoded_for_those_who_ask_for_it(engine):
    async with broadcasting(engine) as (broadcast, _):
        one = broadcast.open(VideoCodec.H264, SoundCodec.AAC, capacity=50)
        two = broadcast.open(VideoCodec.VP8, None, capacity=50)
        first, second = await asyncio.gather(take(one, 30), take(two, 30))
        assert decoded(first) == 30 and decoded(second, "libvpx") == 30
        assert sum(len(unit.sound) for unit in first) >= 54 and not any(unit.sound for unit in second)


async def test_a_newcomer_begins_with_a_key_frame_that_is_made_for_it(engine):
    config = EncoderConfig(codec="libx264", keyframe_interval_s=1_000, keyframe_gap_s=0.2)
    async with broadcasting(engine, config) as (broadcast, _):
        first = broadcast.open(VideoCodec.H264, None, capacity=50)
        await take(first, 20)
        late = broadcast.open(VideoCodec.H264, None, capacity=50)
        units = await take(late, 10)
        pictures = [unit for unit in units if unit.picture]
        assert pictures[0].picture.keyframe and units.index(pictures[0]) <= 2
        assert decoded(pictures) == len(pictures)


@pytest.mark.slow
async def test_many_newcomers_share_a_key_frame(engine):
    config = EncoderConfig(codec="libx264", keyframe_interval_s=1_000, keyframe_gap_s=0.4)
    async with broadcasting(engine, config) as (broadcast, _):
        first = broadcast.open(VideoCodec.H264, None, capacity=200)
        await take(first, 12)
        for _ in range(50):
            late = broadcast.open(VideoCodec.H264, None)
            late.request_keyframe()
            await asyncio.sleep(0.02)
        units = await take(first, 30)
        keys = [unit.number for unit in units if unit.picture.keyframe]
        assert keys and set(np.diff(keys)) <= set(range(10, 30)), "at least 0.4 s apart"


@pytest.mark.slow
async def test_a_slow_reader_resumes_at_a_key_frame_and_slows_nobody(engine):
    config = EncoderConfig(codec="libx264", keyframe_interval_s=1_000, keyframe_gap_s=0)
    async with broadcasting(engine, config) as (broadcast, _):
        quick = broadcast.open(VideoCodec.H264, SoundCodec.OPUS)
        slow = broadcast.open(VideoCodec.H264, SoundCodec.OPUS, capacity=4)
        before, _ = await asyncio.gather(take(slow, 5), take(quick, 5))
        smooth = await take(quick, 40)  # meanwhile nobody reads the slow one
        assert set(np.diff([unit.number for unit in smooth])) == {1} and quick.dropped == 0
        after = await take(slow, 12)
        assert slow.dropped >= 30
        assert after[0].picture is None and after[0].sound, "the sound goes on"
        assert next(unit for unit in after if unit.picture).picture.keyframe
        shown = [unit for unit in before + after if unit.picture]
        assert after[-1].picture and decoded(shown) == len(shown)


async def test_encoders_live_while_somebody_watches(engine):
    async with broadcasting(engine) as (broadcast, _):
        encoded = []
        broadcast.times.observers.append(lambda stage, seconds: encoded.append(stage))
        await asyncio.sleep(0.2)
        assert not encoded
        stream = broadcast.open(VideoCodec.H264, SoundCodec.OPUS)
        await take(stream, 5)
        broadcast.close(stream)
        async with asyncio.timeout(30):  # what is in hand may be finished; then nothing more is encoded
            count = None
            while count != (count := len(encoded)):
                await asyncio.sleep(0.3)
        again = broadcast.open(VideoCodec.H264, None)
        assert (await take(again, 1))[0].picture.keyframe


@pytest.mark.slow
async def test_pictures_are_encoded_at_the_rate_of_the_poorest_link(engine):
    config = EncoderConfig(codec="libx264", min_bitrate_bps=20_000, keyframe_interval_s=1_000)
    async with broadcasting(engine, config) as (broadcast, _):
        rich, poor = (broadcast.open(VideoCodec.H264, None, capacity=200) for _ in range(2))
        await take(rich, 5)  # the key frame
        before = sum(len(unit.picture.data) for unit in await take(rich, 25))
        poor.estimate_bps = 20_000
        # the encoder has saved bits while its pictures were as good as they may be, and spends them first
        after = sum(len(unit.picture.data) for unit in (await take(rich, 125))[100:])
        assert after < 0.5 * before


async def test_the_end_of_the_session_ends_the_streams(engine):
    async with broadcasting(engine) as (broadcast, session):
        stream = broadcast.open(VideoCodec.H264, SoundCodec.OPUS)
        await take(stream, 2)
        await session.close()
        async with asyncio.timeout(30):
            async for _ in stream:
                pass
        with pytest.raises(SessionClosedError):
            broadcast.open(VideoCodec.H264, None)


@pytest.mark.parametrize(
    ("estimates", "steady", "rate"),
    [
        ([], False, 2_000_000),
        ([None], False, 2_000_000),
        ([900_000, None, 1_500_000], False, 900_000),
        ([9_000_000], False, 2_000_000),
        ([10_000, 900_000], False, 400_000),
        ([900_000], True, 2_000_000),
    ],
)
async def test_the_rate_is_the_poorest_viewers_within_bounds(estimates, steady, rate):
    config = EncoderConfig(bitrate_bps=2_000_000, min_bitrate_bps=400_000)
    streams = [SimpleNamespace(estimate_bps=estimate, steady=False) for estimate in estimates]
    assert shared_rate(config, [*streams, SimpleNamespace(estimate_bps=None, steady=steady)]) == rate

"""The engine: opens sessions up to its limit, lets each fail alone, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from stand_ins import NotingBackend, QuickBackend
from talk import RATE_HZ, Events, say, speech

from engine.audio import read_speech
from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.config import LEVELS, MAX_LOAD
from engine.errors import AvatarFileError, CapacityError, DeviceError, SessionClosedError, UnknownAvatarError
from engine.live.batching import BatchTimes
from engine.live.engine import Engine
from engine.live.pipeline import AvatarPipeline
from engine.media import PlaybackFinished, PlaybackStarted
from engine.models.weights import load_face_model


def opened(path, backend=None, max_load=math.inf, **settings):
    """An engine without networks, with the same avatar under two names."""
    avatars = {"speaker": path, "twin": path}
    return Engine(avatars, backend=backend or QuickBackend(), max_load=max_load, **settings)


def test_a_session_runs_until_it_is_closed_and_frees_its_place(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path, max_sessions=1) as engine:
            session = engine.open_session("speaker")
            units = session.subscribe()
            assert engine.sessions == {session.id: session} and (await units.get()).index == 0
            with pytest.raises(CapacityError, match="1 sessions are open"):
                engine.open_session("speaker")
            await session.close()
            await asyncio.sleep(0.1)
            assert not engine.sessions
            again = engine.open_session("speaker")
            assert again.id != session.id
        with pytest.raises(SessionClosedError):
            again.subscribe()

    virtual(main)


def test_leaving_the_engine_ends_its_sessions_and_queues(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path) as engine:
            queues = [engine.open_session("speaker").subscribe() for _ in range(3)]
            await asyncio.sleep(0.1)
        assert not engine.sessions
        for queue in queues:
            assert len([unit async for unit in queue]) == 2

    virtual(main)


def test_a_failed_session_is_closed_and_the_engine_goes_on(virtual, avatar_path, caplog):
    async def main(loop):
        backend = QuickBackend()
        async with opened(avatar_path, backend) as engine:
            failing, living = engine.open_session("speaker"), engine.open_session("twin")
            events, units = failing.subscribe(events_only=True), living.subscribe(capacity=1000)
            await asyncio.sleep(0.5)
            backend.failure = RuntimeError("no more lips")
            failing.start_utterance("a", RATE_HZ, 1)
            await failing.push_audio("a", speech(1.0).tobytes())
            assert [event async for event in events] == []
            assert list(engine.sessions.values()) == [living]
            await asyncio.sleep(1)
            assert abs(len(units) - loop.time() * 25) <= 1

    virtual(main)
    assert "failed" in caplog.text and "no more lips" in caplog.text


def test_an_unknown_avatar_is_refused_with_the_names_there_are(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path) as engine:
            with pytest.raises(UnknownAvatarError, match="no avatar 'mona'; this server has speaker, twin"):
                engine.open_session("mona")
            assert not engine.sessions

    virtual(main)


async def test_a_missing_avatar_file_is_told_at_the_start(tmp_path):
    with pytest.raises(AvatarFileError, match="precompute"):
        async with Engine({"a": tmp_path / "nobody.avatar"}, backend=QuickBackend()):
            raise AssertionError("opened")
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.slow
async def test_a_real_avatar_speaks_and_is_interrupted(avatar_path, speech_wav):
    pcm = np.tile(read_speech(speech_wav), 3)
    async with Engine({"speaker": avatar_path}) as engine:
        assert engine.pipelines["speaker"].times.stages == []  # warming up is not counted
        session = engine.open_session("speaker")
        units, events = session.subscribe(capacity=1000), Events(session)
        session.start_utterance("a", 48_000, 1)
        await session.push_audio("a", pcm.tobytes())
        started = await asyncio.wait_for(anext(events), 60)
        assert isinstance(started, PlaybackStarted)
        last = await units.get()
        while not last.speaking or last.pts < started.pts + 10 * 1920:
            last = await units.get()
        session.cancel()
        finished = await asyncio.wait_for(anext(events), 60)
        assert isinstance(finished, PlaybackFinished) and finished.interrupted
        assert 11 * 1920 <= finished.position_samples < len(pcm) and finished.position_samples % 1920 == 0
        await session.close()
        spoken = [unit async for unit in units]
        assert all(
            unit.image.shape == (engine.avatars["speaker"].height, engine.avatars["speaker"].width, 3)
            for unit in spoken
        )
        assert not any(unit.samples.any() for unit in spoken if unit.epoch == 1)
    assert not engine.sessions


def test_counters_outlive_their_sessions(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path) as engine:
            first = engine.open_session("speaker")
            await asyncio.sleep(1.0)
            await first.close()
            await asyncio.sleep(0.1)
            assert engine.counters == first.counters and first.counters.units >= 24
            second = engine.open_session("speaker")
            await asyncio.sleep(1.0)
            assert engine.counters.units == first.counters.units + second.counters.units

    virtual(main)


def test_an_engine_is_there_when_every_network_has_run(avatar_path):
    backend = NotingBackend(CpuBackend.embedded())

    async def main():
        async with Engine({"speaker": avatar_path}, backend=backend) as engine:
            assert backend.rows.keys() == {"speech", "geometry", "renderer"}
            assert engine.pipelines["speaker"].times.stages == [], "compiling is no stage's time"

    asyncio.run(main())


def set_costs(engine, picture_s):
    """Let batches of pictures take so long on the engine's device, by size, and nothing else take any time."""
    engine.costs = BatchTimes({"best": picture_s})


def test_a_session_that_would_make_others_miss_is_refused(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path, max_sessions=10, max_load=MAX_LOAD) as engine:
            set_costs(engine, {1: 0.010})
            assert engine.room == 3 and engine.load() == 0
            for left in (2, 1, 0):
                engine.open_session("speaker")
                assert engine.room == left
            with pytest.raises(CapacityError, match="3 sessions are open and one more would need 100% of the device"):
                engine.open_session("speaker")
            await asyncio.sleep(11)
            assert engine.room == 3, "who does not speak for long leaves room"
            session = next(iter(engine.sessions.values()))
            await say(session, "a", speech(1.0))
            assert engine.room == 2
            await asyncio.sleep(5)
            assert engine.room == 2, "who spoke a moment ago will go on"
            await session.close()
            await asyncio.sleep(0.1)
            assert engine.room == 3

    virtual(main)


def test_batches_make_room_and_the_limit_of_sessions_holds_beside_them(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path, max_sessions=6, max_load=MAX_LOAD) as engine:
            set_costs(engine, {1: 0.010, 4: 0.020})
            assert engine.room == 6

    virtual(main)


def test_every_worker_makes_room(virtual, avatar_path):
    async def main(loop):
        backend = QuickBackend()
        backend.workers = 2
        async with opened(avatar_path, backend, max_sessions=10, max_load=MAX_LOAD) as engine:
            set_costs(engine, {1: 0.010})
            assert engine.load(1) == pytest.approx(0.125) and engine.room == 7

    virtual(main)


def test_one_session_is_admitted_however_slow_the_machine(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path, max_load=MAX_LOAD) as engine:
            set_costs(engine, {1: 0.2})
            assert engine.room == 1
            engine.open_session("speaker")
            with pytest.raises(CapacityError, match="would need 1000% of the device, the limit is 90%"):
                engine.open_session("speaker")

    virtual(main)


async def test_what_batches_take_is_measured_at_the_start(avatar_path):
    async with Engine({"speaker": avatar_path}) as engine:
        assert engine.costs.seconds.keys() == {"lips", "idle", *LEVELS}
        assert engine.costs.sizes("best") == [1], "small windows gain more on a CPU than batches do"
        assert engine.costs.batch_s("idle", 1) > 0 and engine.costs.batch_s("best", 1) > 0
        pictures = 25 * engine.costs.batch_s("best", 1)
        assert engine.load() == 0 and 0 < engine.load(1) < pictures + 6.25 * engine.costs.batch_s("lips", 1)


@pytest.mark.parametrize("level", ["best", "best-half"])
def test_offline_speech_is_the_same_with_any_number_of_workers(avatar_path, speech_wav, level):
    def units(workers):
        backend = QuickBackend()
        backend.levels, backend.workers = (level,), workers
        pipeline = AvatarPipeline(backend, Avatar.open(avatar_path), load_face_model())
        return list(pipeline.speak(read_speech(speech_wav)[:96_000]))

    alone, together = units(1), units(2)
    assert len(alone) == len(together) > 50
    for one, other in zip(alone, together, strict=True):
        assert one.fresh and other.fresh and one.events == other.events
        assert np.array_equal(one.image, other.image) and np.array_equal(one.samples, other.samples)


def test_a_lost_device_is_told_and_opens_no_more_sessions(virtual, avatar_path):
    async def main(loop):
        backend = QuickBackend()
        async with opened(avatar_path, backend) as engine:
            speaking, silent = engine.open_session("speaker"), engine.open_session("speaker")
            backend.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
            with contextlib.suppress(SessionClosedError):
                await say(speaking, "a", speech(1.0))
            await speaking.ended()
            assert not engine.failed.is_set(), "the device works: it was the session's own fault"
            backend.loss = "cuda:0 computes nothing more (CUDA error)"
            another = engine.open_session("speaker")
            with contextlib.suppress(SessionClosedError):
                await say(another, "a", speech(1.0))
            await engine.failed.wait()
            with pytest.raises(DeviceError, match="cuda:0 computes nothing more .*; restart the server"):
                engine.open_session("speaker")
            await asyncio.sleep(0.1)
            assert list(engine.sessions.values()) == [silent], "silence needs no device"

    virtual(main)


class Cold(QuickBackend):
    """Fails when it first runs the speech encoder, as a device does that lacks memory or a library."""

    def __init__(self):
        super().__init__()
        self.failure = torch.OutOfMemoryError("CUDA out of memory.\nmore lines")


async def test_a_backend_that_does_not_warm_up_is_replaced_by_its_spare(avatar_path):
    cold, reasons = Cold(), []
    cold.spare = lambda reason: reasons.append(reason) or QuickBackend()
    async with opened(avatar_path, cold) as engine:
        assert engine.backend is not cold and engine.avatars.keys() == {"speaker", "twin"}
        (reason,) = reasons
        assert "does not paint these avatars (CUDA out of memory.)" in reason


async def test_a_backend_that_was_asked_for_by_name_and_does_not_warm_up_is_an_error(avatar_path):
    with pytest.raises(DeviceError, match="does not paint these avatars .*choose `--device auto`"):
        async with opened(avatar_path, Cold()):
            raise AssertionError("opened")


def test_an_avatar_that_is_loaded_later_idles_and_leaves_with_its_last_session(virtual, avatar_path):
    async def main(loop):
        async with opened(avatar_path) as engine:
            pipeline = weakref.ref(await engine.load_avatar("third", avatar_path))
            session = engine.open_session("third")
            units = session.subscribe(capacity=1000)
            await asyncio.sleep(1)
            engine.unload_avatar("third")
            with pytest.raises(UnknownAvatarError):
                engine.open_session("third")
            await asyncio.sleep(1)
            assert len(units) >= 49 and all([(await units.get()).fresh for _ in range(49)])
            await session.close()
            await session.ended()
            await asyncio.sleep(0.1)
            del session, units
            gc.collect()
            assert pipeline() is None

    virtual(main)

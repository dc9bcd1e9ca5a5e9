"""A session on its clock: 25 units a second whatever happens, and everything about it ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import numpy as np
import pytest

from engine.config import SessionConfig
from engine.errors import CapacityError, ProtocolError, SessionClosedError, SpeechFormatError
from engine.media import SAMPLES_PER_FRAME, PlaybackFinished, PlaybackStarted, float_to_pcm
from engine.queues import QueueClosed
from engine.scheduler import Scheduler
from engine.session import Session

RATE_HZ = 16_000


def speech(seconds, seed=0):
    return float_to_pcm(
        (np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ)) * 0.1).astype(np.float32)
    )


@contextlib.asynccontextmanager
async def running(loop, *puppets, config=None):
    """Sessions of these puppets on one scheduler, closed at the end."""
    scheduler = Scheduler()
    async with asyncio.TaskGroup() as tasks:
        sessions = []
        for i, puppet in enumerate(puppets):
            puppet.clock = loop
            sessions.append(Session(str(i), puppet, scheduler, config or SessionConfig()))
            tasks.create_task(sessions[-1].run())
        await asyncio.sleep(0)
        yield sessions
        for session in sessions:
            await session.close()
    await scheduler.close()


async def watch(session, seconds, loop):
    """(time, unit) of all units of so many seconds."""
    units, seen = session.subscribe(), []
    end = loop.time() + seconds
    with contextlib.suppress(TimeoutError, QueueClosed):
        async with asyncio.timeout_at(end):
            while True:
                seen.append((loop.time(), await units.get()))
    session.unsubscribe(units)
    assert units.dropped == 0
    return seen


async def say(session, name, pcm, *, packet_s=None, real_time=False):
    session.start_utterance(name, RATE_HZ, 1)
    size = round((packet_s or 0.04) * RATE_HZ)
    for i in range(0, len(pcm), size):
        if real_time:
            await asyncio.sleep(size / RATE_HZ)
        await session.push_audio(name, pcm[i : i + size].tobytes())
    session.end_utterance(name)


async def events_until_finished(queue, name):
    found = []
    async for event in queue:
        found.append(event)
        if isinstance(event, PlaybackFinished) and event.utterance == name:
            return found
    raise AssertionError(f"{name} never finished: {found}")


# ---- pace


def test_an_hour_is_25_units_a_second_without_drift(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units = session.subscribe()
            for n in range(25 * 3600):
                unit = await units.get()
                assert unit.index == n and abs(loop.time() - (n + 1) / 25) < 1e-6
            assert session.counters.units == 25 * 3600 and session.counters.late == 0

    virtual(main)


def test_after_a_short_stall_the_missed_units_follow_at_once(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units = session.subscribe(capacity=100)
            await asyncio.sleep(1.01)
            loop.spend(0.5)
            await asyncio.sleep(1)
            await session.close()
            seen = [unit.index async for unit in units]
            assert seen == list(range(len(seen))) and abs(len(seen) / 25 - loop.time()) < 0.05
            assert 0 < session.counters.late <= 13

    virtual(main)


def test_after_a_long_stall_time_goes_on_from_where_it_is(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units = session.subscribe(capacity=1000)
            await asyncio.sleep(1.01)
            loop.spend(60)
            await asyncio.sleep(2)
            await session.close()
            seen = [unit.index async for unit in units]
            assert seen == list(range(len(seen))) and 73 <= len(seen) <= 77

    virtual(main)


def test_speech_in_real_time_is_heard_whole_and_seen_within_300_ms_of_its_first_280(virtual, make_puppet):
    async def main(loop):
        puppet = make_puppet(hear_s=0.025, paint_s=0.03)
        async with running(loop, puppet) as (session,):
            await asyncio.sleep(0.517)
            events = session.subscribe_events()
            began, pcm = loop.time(), speech(4.0)
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 6, loop))
                tasks.create_task(say(session, "a", pcm, packet_s=0.02, real_time=True))
            start, finish = await events_until_finished(events, "a")
            assert isinstance(start, PlaybackStarted) and finish == PlaybackFinished("a", len(pcm), False)
            sound = np.concatenate([unit.samples for _, unit in seen.result()])
            first = seen.result()[0][1].pts
            assert not sound[: start.pts - first].any()
            loud = np.flatnonzero(sound)
            assert abs(loud[-1] + 1 - loud[0] - 48_000 * 4) < 10
            synced = next(t for t, u in seen.result() if u.speaking and u.fresh)
            assert synced - (began + 0.28) <= 0.3
            assert session.counters.fresh_speaking == session.counters.speaking

    virtual(main)


@pytest.mark.parametrize("paint_s", [0.1, 0.33, 0.8])
def test_a_slow_painter_gives_the_pictures_it_can_and_all_the_sound(virtual, make_puppet, paint_s):
    async def main(loop):
        async with running(loop, make_puppet(hear_s=0.02, paint_s=paint_s)) as (session,):
            pcm = speech(8.0)
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 11, loop))
                tasks.create_task(say(session, "a", pcm, real_time=True))
            speaking = [unit for _, unit in seen.result() if unit.speaking]
            assert len(speaking) == 8 * 25
            assert sum(u.fresh for u in speaking) >= 0.7 * 8 / (paint_s + 0.02) - 2

    virtual(main)


def test_one_slow_moment_does_not_slow_the_rest_of_the_session(virtual, make_puppet):
    async def main(loop):
        puppet = make_puppet(hear_s=0.01, paint_s=0.02)
        async with running(loop, puppet) as (session,):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 11, loop))
                tasks.create_task(say(session, "a", speech(10.0)))
                await asyncio.sleep(2)
                puppet.paint_s = 3.0
                await asyncio.sleep(0.1)
                puppet.paint_s = 0.02
            late = [u.fresh for _, u in seen.result() if u.speaking and u.index > 25 * 6]
            assert len(late) > 80 and all(late)

    virtual(main)


def test_speech_begins_soon_though_the_last_picture_took_long(virtual, make_puppet):
    async def main(loop):
        puppet = make_puppet(hear_s=0.01, paint_s=0.02)
        async with running(loop, puppet) as (session,):
            events = session.subscribe_events()
            await say(session, "a", speech(5.0))
            await asyncio.sleep(1)
            puppet.paint_s = 5.0
            await asyncio.sleep(0.1)
            puppet.paint_s = 0.02
            session.cancel()
            await asyncio.sleep(5)
            began = loop.time()
            await say(session, "b", speech(1.0))
            await events_until_finished(events, "b")
            assert loop.time() - began < 1.0 + 0.6

    virtual(main)


# ---- barge-in


@pytest.mark.parametrize("moment_s", [0.1, 0.337, 0.8, 2.3])
def test_after_a_cancel_there_is_silence_and_a_closed_mouth_within_200_ms(virtual, make_puppet, opening_of, moment_s):
    async def main(loop):
        async with running(loop, make_puppet(hear_s=0.03, paint_s=0.03)) as (session,):
            events = session.subscribe_events()
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 4, loop))
                tasks.create_task(say(session, "a", speech(3.0)))
                await asyncio.sleep(moment_s)
                session.cancel()
                cancelled = loop.time()
            after = [(t, u) for t, u in seen.result() if t > cancelled]
            assert after[0][0] - cancelled <= 0.0401
            assert not any(u.samples.any() for _, u in after)
            resting = [opening_of(u.image) < 0.2 for _, u in after]
            assert all(resting[7:])
            (finish,) = [e for e in await events_until_finished(events, "a") if isinstance(e, PlaybackFinished)]
            played = sum(u.speaking for _, u in seen.result())
            assert finish == PlaybackFinished("a", played * RATE_HZ // 25, True)

    virtual(main)


# ---- back-pressure


def test_a_sender_faster_than_real_time_is_held_back_and_loses_nothing(virtual, make_puppet):
    async def main(loop):
        config = SessionConfig(buffered_speech_ms=2000)
        async with running(loop, make_puppet(), config=config) as (session,):
            pcm = speech(10.0)
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 13, loop))
                await say(session, "a", pcm, packet_s=0.1)
                assert 7.5 < loop.time() < 9
            assert sum(u.speaking for _, u in seen.result()) == 250

    virtual(main)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_sender_that_is_held_back_is_released(virtual, make_puppet, how):
    async def main(loop):
        async with running(loop, make_puppet(), config=SessionConfig(buffered_speech_ms=500)) as (session,):
            session.start_utterance("a", RATE_HZ, 1)
            pushing = asyncio.ensure_future(session.push_audio("a", speech(20.0).tobytes()))
            await asyncio.sleep(1.01)  # between two frames
            assert not pushing.done()
            if how == "cancel":
                session.cancel()
                await asyncio.sleep(0.05)
                assert pushing.done() and pushing.result() is None
            else:
                await session.close()
                with pytest.raises(SessionClosedError):
                    await pushing

    virtual(main)


def test_sound_behind_an_open_utterance_is_refused_where_waiting_would_not_help(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet(), config=SessionConfig(buffered_speech_ms=2000)) as (session,):
            events = session.subscribe_events()
            for name in "ab":
                session.start_utterance(name, RATE_HZ, 1)
            await session.push_audio("a", speech(2.5).tobytes())
            full_s = loop.time()
            await session.push_audio("b", speech(2.5).tobytes())
            assert loop.time() == full_s, "it has its own place, and need not wait until a was played"
            with pytest.raises(CapacityError, match="behind utterance 'a'.*end 'a', then go on with 'b'"):
                await asyncio.wait_for(session.push_audio("b", speech(1.0).tobytes()), 5)
            await asyncio.wait_for(session.push_audio("a", speech(1.0).tobytes()), 5)  # b's does not hold it up
            session.end_utterance("a")
            await session.push_audio("b", speech(1.0).tobytes())
            session.end_utterance("b")
            finished = await events_until_finished(events, "b")
            assert finished[-1] == PlaybackFinished("b", 7 * RATE_HZ // 2, False)

    virtual(main)


def test_a_long_message_lets_other_work_go_on_and_sounds_the_same(virtual, make_puppet):
    pcm = speech(20.0)

    def played(packet_s):
        async def main(loop):
            async with running(loop, make_puppet()) as (session,):
                turns, done = 0, asyncio.Event()

                async def other_work():
                    nonlocal turns
                    while not done.is_set():
                        turns += 1
                        await asyncio.sleep(0)

                async with asyncio.TaskGroup() as tasks:
                    seen = tasks.create_task(watch(session, 22, loop))
                    working = tasks.create_task(other_work())
                    session.start_utterance("a", RATE_HZ, 1)
                    for part in np.split(pcm, round(20 / packet_s)):
                        await session.push_audio("a", part.tobytes())
                    session.end_utterance("a")
                    done.set()
                    await working
                assert turns >= 40
                return np.concatenate([u.samples for _, u in seen.result() if u.speaking])

        return virtual(main)

    np.testing.assert_array_equal(played(20.0), played(0.1))


def test_pushes_to_one_utterance_keep_their_order(virtual, make_puppet):
    async def main(loop):
        parts = [speech(3.0, seed) for seed in range(3)]
        async with running(loop, make_puppet()) as (session,):
            heard = []
            push = session._timeline.push_audio
            session._timeline.push_audio = lambda name, pcm: (heard.append(pcm), push(name, pcm))
            session.start_utterance("a", RATE_HZ, 1)
            await asyncio.gather(*(session.push_audio("a", part.tobytes()) for part in parts))
            assert b"".join(heard) == np.concatenate(parts).tobytes() and len(heard) == 18

    virtual(main)


def test_a_message_of_broken_samples_is_refused_whole(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            session.start_utterance("a", RATE_HZ, 1)
            with pytest.raises(SpeechFormatError, match="utterance 'a'"):
                await session.push_audio("a", speech(2.0).tobytes() + b"\0")
            assert session._timeline.buffered_ms == 0

    virtual(main)


def test_a_push_that_a_cancel_cuts_short_adds_nothing_to_the_next_utterance_of_that_name(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet(), config=SessionConfig(buffered_speech_ms=1000)) as (session,):
            events = session.subscribe_events()
            session.start_utterance("a", RATE_HZ, 1)
            pushing = asyncio.ensure_future(session.push_audio("a", speech(20.0).tobytes()))
            await asyncio.sleep(1.0)
            session.cancel()
            session.start_utterance("a", RATE_HZ, 1)
            await session.push_audio("a", speech(0.5).tobytes())
            session.end_utterance("a")
            await pushing
            await events_until_finished(events, "a")
            assert (await events_until_finished(events, "a"))[-1] == PlaybackFinished("a", RATE_HZ // 2, False)

    virtual(main)


# ---- viewers and the end


def test_a_slow_viewer_loses_the_oldest_units_and_hinders_nobody(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            slow, quick = session.subscribe(capacity=4), asyncio.ensure_future(watch(session, 2, loop))
            await asyncio.sleep(2)
            assert len(slow) == 4 and slow.dropped > 40
            assert len(await quick) in (49, 50)

    virtual(main)


def test_a_viewer_that_closes_its_queue_leaves_without_harm(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            gone, events = session.subscribe(), session.subscribe_events()
            await gone.close()
            await events.close()
            await say(session, "a", speech(0.2))
            assert len(await watch(session, 2, loop)) >= 49

    virtual(main)


def test_close_ends_queues_and_refuses_everything_afterwards(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units, events = session.subscribe(), session.subscribe_events()
            session.start_utterance("a", RATE_HZ, 1)
            await asyncio.sleep(0.1)
            await session.close()
            await session.close()
            assert [u async for u in units] and [e async for e in events] == []
            for refused in (
                lambda: session.start_utterance("b", RATE_HZ, 1),
                lambda: session.end_utterance("a"),
                session.subscribe,
                session.subscribe_events,
            ):
                with pytest.raises(SessionClosedError, match="closed"):
                    refused()
            with pytest.raises(SessionClosedError):
                await session.push_audio("a", b"\0\0")
            session.cancel()

    virtual(main)


def test_a_refused_message_does_not_end_the_session(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            with pytest.raises(ProtocolError):
                await session.push_audio("never", b"\0\0")
            await say(session, "a", speech(0.3))
            assert sum(u.speaking for _, u in await watch(session, 2, loop)) == 8

    virtual(main)


def test_a_closed_session_leaves_nothing_behind(virtual, make_puppet):
    async def main(loop):
        scheduler, puppet = Scheduler(), make_puppet()
        puppet.clock = loop
        session = Session("a", puppet, scheduler, SessionConfig())
        running = asyncio.ensure_future(session.run())
        await asyncio.sleep(0)
        await say(session, "a", speech(1.0))
        await asyncio.sleep(0.5)
        await session.close()
        await running
        await asyncio.sleep(0.1)
        left = weakref.ref(session)
        del session, running
        gc.collect()
        assert left() is None
        await scheduler.close()

    virtual(main)


# ---- several sessions


def test_two_sessions_do_not_meet(virtual, make_puppet):
    def alone(seed, other):
        async def main(loop):
            puppets = [make_puppet(hear_s=0.005, paint_s=0.005) for _ in range(2 if other else 1)]
            async with running(loop, *puppets) as sessions, asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch(sessions[0], 4, loop))
                tasks.create_task(say(sessions[0], "a", speech(1.5, seed), real_time=True))
                if other:
                    tasks.create_task(say(sessions[1], "a", speech(1.5, seed + 1), real_time=True))
                    await asyncio.sleep(1)
                    sessions[1].cancel()
            return [(u.samples.tobytes(), u.image[..., :2].tobytes(), u.epoch) for _, u in watching.result()]

        return virtual(main)

    assert alone(5, False) == alone(5, True)


def test_the_failure_of_one_session_does_not_touch_the_other(virtual, make_puppet):
    async def main(loop):
        good, bad = make_puppet(), make_puppet()
        failed = []

        async def supervised(session):
            try:
                await session.run()
            except Exception as error:
                failed.append(str(error))

        scheduler = Scheduler()
        sessions = [Session(str(i), puppet, scheduler, SessionConfig()) for i, puppet in enumerate((bad, good))]
        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                tasks.create_task(supervised(session))
            events = sessions[0].subscribe_events()
            await asyncio.sleep(0.5)
            bad.failure = RuntimeError("no more paint")
            seen = await watch(sessions[1], 2, loop)
            assert len(seen) >= 49 and all(u.fresh for _, u in seen)
            assert failed == ["no more paint"] and [e async for e in events] == []
            with pytest.raises(SessionClosedError):
                sessions[0].start_utterance("a", RATE_HZ, 1)
            await sessions[1].close()
        await scheduler.close()

    virtual(main)


def test_an_overloaded_machine_lets_every_session_speak(virtual, make_puppet):
    async def main(loop):
        puppets = [make_puppet(hear_s=0.005, paint_s=0.06) for _ in range(4)]
        async with running(loop, *puppets) as sessions, asyncio.TaskGroup() as tasks:
            seen = [tasks.create_task(watch(session, 12, loop)) for session in sessions]
            for i, session in enumerate(sessions):
                tasks.create_task(say(session, "a", speech(8.0, seed=i), real_time=True))
                await asyncio.sleep(0.3)
        for watching in seen:
            speaking = [u for _, u in watching.result() if u.speaking]
            assert len(speaking) == 200
            assert sum(u.fresh for u in speaking) >= 15

    virtual(main)


def test_units_carry_1920_samples_each_at_their_media_time(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 3, loop))
                tasks.create_task(say(session, "a", speech(1.01)))
            for _, unit in seen.result():
                assert unit.samples.shape == (SAMPLES_PER_FRAME,) and unit.pts == unit.index * SAMPLES_PER_FRAME

    virtual(main)

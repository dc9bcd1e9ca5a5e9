"""Viewers, the end of a session, and sessions beside each other."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import defaultdict

import pytest
from talk import RATE_HZ, Events, running, say, scheduler_of, speech, watch

from engine.config import SessionConfig
from engine.errors import DrainingError, ProtocolError, SessionClosedError
from engine.live.session import Session
from engine.live.subscription import MAX_EVENTS
from engine.media import SAMPLES_PER_FRAME, PlaybackFinished, PlaybackStarted
from engine.metrics import StageTimes


def test_a_slow_viewer_loses_the_oldest_units_and_hinders_nobody(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            slow, quick = session.subscribe(capacity=4), asyncio.ensure_future(watch(session, 2, loop))
            await asyncio.sleep(2)
            assert len(slow) == 4 and slow.dropped > 40
            assert len(await quick) in (49, 50)

    virtual(main)


def test_a_slow_reader_loses_pictures_but_no_event(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            quick, slow, only = Events(session), session.subscribe(capacity=2), session.subscribe(1, events_only=True)
            for name in "abc":
                await say(session, name, speech(0.3))
            await say(session, "cut off", speech(9.0))
            await asyncio.sleep(2)
            session.cancel()
            expected = await quick.until_finished("cut off")
            assert len(expected) == 8 and expected[-1].interrupted
            await session.close()
            late = [unit async for unit in slow]
            assert len(late) == 2 and slow.dropped > 40
            assert [event for unit in late for event in unit.events] == expected
            (unit,) = [unit async for unit in only]
            assert list(unit.events) == expected, "one unit at most waits for a reader of events"

    virtual(main)


def test_a_reader_that_never_reads_keeps_a_bounded_number_of_events(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            never = session.subscribe(1, events_only=True)
            for number in range(MAX_EVENTS // 2 + 20):
                session.start_utterance(str(number), RATE_HZ, 1)
                session.end_utterance(str(number))
                session.start_utterance(f"{number} too", RATE_HZ, 1)
                session.cancel()
                await asyncio.sleep(0.04)
            await session.close()
            (unit,) = [unit async for unit in never]
            assert len(unit.events) == MAX_EVENTS and unit.events[-1].utterance == f"{number} too"

    virtual(main)


def test_a_reader_that_missed_a_picture_finds_the_next_unit_fresh(virtual, make_puppet):
    async def main(loop):
        puppet = make_puppet()
        async with running(loop, puppet) as (session,):
            await asyncio.sleep(1)
            units = session.subscribe(capacity=1)
            puppet.idle_s = 60.0  # no other picture is made meanwhile
            await asyncio.sleep(1)
            shown = await units.get()
            assert shown.fresh and not (await units.get()).fresh

    virtual(main)


def test_events_travel_on_the_unit_whose_sound_they_speak_of(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 3, loop))
                tasks.create_task(say(session, "a", speech(1.01)))
            speaking = [unit for _, unit in seen.result() if unit.speaking]
            assert speaking[0].events == (PlaybackStarted("a", speaking[0].pts),)
            assert speaking[-1].events == (PlaybackFinished("a", len(speech(1.01)), False),)
            assert sum(len(unit.events) for _, unit in seen.result()) == 2

    virtual(main)


def test_a_viewer_that_closes_its_queue_leaves_without_harm(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            gone = session.subscribe()
            await gone.close()
            await say(session, "a", speech(0.2))
            assert len(await watch(session, 2, loop)) >= 49

    virtual(main)


def test_close_ends_queues_and_refuses_everything_afterwards(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units, events = session.subscribe(), session.subscribe(events_only=True)
            ended = asyncio.ensure_future(session.ended())
            session.start_utterance("a", RATE_HZ, 1)
            await asyncio.sleep(0.1)
            assert not ended.done()
            await session.close()
            await session.close()
            await ended
            assert [u async for u in units] and [e async for e in events] == []
            for refused in (
                lambda: session.start_utterance("b", RATE_HZ, 1),
                lambda: session.end_utterance("a"),
                session.subscribe,
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
        scheduler, puppet = scheduler_of(), make_puppet()
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
            puppets = [make_puppet(lips_s=0.005, paint_s=0.005) for _ in range(2 if other else 1)]
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

        scheduler = scheduler_of()
        sessions = [Session(str(i), puppet, scheduler, SessionConfig()) for i, puppet in enumerate((bad, good))]
        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                tasks.create_task(supervised(session))
            events = sessions[0].subscribe(events_only=True)
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
        puppets = [make_puppet(lips_s=0.005, paint_s=0.06) for _ in range(4)]
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


# ---- draining and latencies


def test_a_draining_session_finishes_what_was_begun_and_begins_nothing(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            events = Events(session)
            await say(session, "begun", speech(2.0))
            session.start_utterance("open", RATE_HZ, 1)
            drained = asyncio.ensure_future(session.drain())
            await asyncio.sleep(0.5)
            with pytest.raises(DrainingError, match="finishes what was begun"):
                session.start_utterance("late", RATE_HZ, 1)
            await session.push_audio("open", speech(0.4).tobytes())
            await asyncio.sleep(5)
            assert not drained.done(), "an utterance is still open"
            session.end_utterance("open")
            await drained
            finished = [await anext(events) for _ in range(4)][1::2]
            assert [(e.utterance, e.interrupted) for e in finished] == [("begun", False), ("open", False)]

    virtual(main)


def test_draining_ends_with_the_session(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            session.start_utterance("open", RATE_HZ, 1)
            drained = asyncio.ensure_future(session.drain())
            await asyncio.sleep(1)
            await session.close()
            await drained

    virtual(main)


def test_first_frame_and_interrupt_tail_are_measured(virtual, make_puppet):
    async def main(loop):
        puppet, scheduler, latencies = make_puppet(lips_s=0.02, paint_s=0.03), scheduler_of(), StageTimes()
        puppet.clock = loop
        measured = defaultdict(list)
        latencies.observers.append(lambda stage, seconds: measured[stage].append(seconds))
        session = Session("a", puppet, scheduler, SessionConfig(), latencies)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session.run())
            await asyncio.sleep(0.5)
            await say(session, "one", speech(3.0))
            await asyncio.sleep(1.0)
            (first_frame_s,) = measured["first_frame"]
            assert 0 < first_frame_s < 0.4 and not measured["interrupt_tail"]
            session.cancel()
            await asyncio.sleep(0.2)
            (tail_s,) = measured["interrupt_tail"]
            assert 0 <= tail_s <= 0.04 + 1e-9
            session.cancel()
            await asyncio.sleep(1.0)
            assert len(measured["interrupt_tail"]) == 1, "nothing was said"
            await say(session, "two", speech(1.0))
            await asyncio.sleep(1.0)
            assert len(measured["first_frame"]) == 2
            await session.close()
        await scheduler.close()

    virtual(main)


def test_sessions_of_an_avatar_stand_at_the_same_place_of_its_loop(virtual, make_puppet):
    async def main(loop):
        puppet, scheduler = make_puppet(), scheduler_of()
        puppet.clock = loop
        first, second = (Session(name, puppet, scheduler, SessionConfig()) for name in "ab")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first.run())
            await asyncio.sleep(0.6)
            tasks.create_task(second.run())
            await asyncio.sleep(0.4)
            units = [session.subscribe() for session in (first, second)]
            one, other = [await queue.get() for queue in units]
            assert one.index - other.index == 15 and one.image[0, 0, 0] == other.image[0, 0, 0]
            for session in (first, second):
                await session.close()
        await scheduler.close()

    virtual(main)

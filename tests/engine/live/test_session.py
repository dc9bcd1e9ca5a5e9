"""A session on its clock: 25 units a second whatever happens, and everything about it ends with it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from player import at_48k
from talk import RATE_HZ, Events, running, say, speech, watch

from engine.config import SessionConfig
from engine.errors import CapacityError, SessionClosedError, SpeechFormatError
from engine.media import PlaybackFinished, PlaybackStarted

# ---- pace


def test_ten_minutes_are_25_units_a_second_without_drift(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            units = session.subscribe()
            for n in range(25 * 600):
                unit = await units.get()
                assert unit.index == n and abs(loop.time() - (n + 1) / 25) < 1e-6
            assert session.counters.units == 25 * 600 and session.counters.late == 0

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
        puppet = make_puppet(lips_s=0.025, paint_s=0.03)
        async with running(loop, puppet) as (session,):
            await asyncio.sleep(0.517)
            events = Events(session)
            began, pcm = loop.time(), speech(4.0)
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 6, loop))
                tasks.create_task(say(session, "a", pcm, packet_s=0.02, real_time=True))
            start, finish = await events.until_finished("a")
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
        async with running(loop, make_puppet(lips_s=0.02, paint_s=paint_s)) as (session,):
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
        puppet = make_puppet(lips_s=0.01, paint_s=0.02)
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
        puppet = make_puppet(lips_s=0.01, paint_s=0.02)
        async with running(loop, puppet) as (session,):
            events = Events(session)
            await say(session, "a", speech(5.0))
            await asyncio.sleep(1)
            puppet.paint_s = 5.0
            await asyncio.sleep(0.1)
            puppet.paint_s = 0.02
            session.cancel()
            await asyncio.sleep(5)
            began = loop.time()
            await say(session, "b", speech(1.0))
            await events.until_finished("b")
            assert loop.time() - began < 1.0 + 0.6

    virtual(main)


# ---- barge-in


@pytest.mark.parametrize("moment_s", [0.1, 0.337, 0.8, 2.3])
def test_after_a_cancel_there_is_silence_and_a_closed_mouth_within_200_ms(virtual, make_puppet, opening_of, moment_s):
    async def main(loop):
        async with running(loop, make_puppet(lips_s=0.03, paint_s=0.03)) as (session,):
            events = Events(session)
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
            (finish,) = [e for e in await events.until_finished("a") if isinstance(e, PlaybackFinished)]
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
            events = Events(session)
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
            finished = await events.until_finished("b")
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
        async with running(loop, make_puppet()) as (session,), asyncio.TaskGroup() as tasks:
            seen = tasks.create_task(watch(session, 12, loop))
            session.start_utterance("a", RATE_HZ, 1)
            await asyncio.gather(*(session.push_audio("a", part.tobytes()) for part in parts))
            session.end_utterance("a")
        sound = np.concatenate([unit.samples for _, unit in seen.result() if unit.speaking])
        assert np.array_equal(sound[: 48_000 * 9], at_48k(np.concatenate(parts), RATE_HZ))

    virtual(main)


@pytest.mark.parametrize(("channels", "piece_bytes"), [(1, 1), (1, 1001), (2, 3), (2, 4 * 480 - 2)])
def test_pieces_that_tear_samples_are_joined(virtual, make_puppet, channels, piece_bytes):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            events, pcm = Events(session), np.repeat(speech(0.2), channels).tobytes()
            session.start_utterance("a", RATE_HZ, channels)
            for start in range(0, len(pcm), piece_bytes):
                await session.push_audio("a", pcm[start : start + piece_bytes])
            session.end_utterance("a")
            assert (await events.until_finished("a"))[-1] == PlaybackFinished("a", RATE_HZ // 5, False)

    virtual(main)


def test_an_utterance_that_stops_inside_a_sample_is_told_so_and_ends_without_it(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet()) as (session,):
            events = Events(session)
            session.start_utterance("a", RATE_HZ, 2)
            await session.push_audio("a", np.repeat(speech(0.2), 2).tobytes() + b"\1\1\1")
            with pytest.raises(SpeechFormatError, match="utterance 'a' ended with 3 bytes of a sample that has 4"):
                session.end_utterance("a")
            assert (await events.until_finished("a"))[-1] == PlaybackFinished("a", RATE_HZ // 5, False)

    virtual(main)


def test_a_push_that_a_cancel_cuts_short_adds_nothing_to_the_next_utterance_of_that_name(virtual, make_puppet):
    async def main(loop):
        async with running(loop, make_puppet(), config=SessionConfig(buffered_speech_ms=1000)) as (session,):
            events = Events(session)
            session.start_utterance("a", RATE_HZ, 1)
            pushing = asyncio.ensure_future(session.push_audio("a", speech(20.0).tobytes()))
            await asyncio.sleep(1.0)
            session.cancel()
            session.start_utterance("a", RATE_HZ, 1)
            await session.push_audio("a", speech(0.5).tobytes())
            session.end_utterance("a")
            await pushing
            await events.until_finished("a")
            assert (await events.until_finished("a"))[-1] == PlaybackFinished("a", RATE_HZ // 2, False)

    virtual(main)

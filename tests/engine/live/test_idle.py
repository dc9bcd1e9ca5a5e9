"""Idle pictures: decoded once for all silent sessions of an avatar, and a failure ends those that need them alone."""

from __future__ import annotations

import asyncio

import pytest
from talk import conversing, say, scheduler_of, speech, watch

from engine.config import SessionConfig
from engine.live.batching import BatchTimes
from engine.live.idle import IdlePictures
from engine.live.job import IdleJob
from engine.live.session import Session
from engine.media import FPS


def watched(make_puppet, loop, **times):
    """A puppet, and the base frames of the idle pictures that it decodes."""
    decoded = []
    puppet = make_puppet(watch=lambda job, _: decoded.append(job.base) if isinstance(job, IdleJob) else None, **times)
    puppet.clock = loop
    return puppet, decoded


def test_silent_sessions_share_each_picture_which_is_decoded_once(virtual, make_puppet):
    async def main(loop):
        puppet, decoded = watched(make_puppet, loop)
        puppet.idle_s = 0.005
        async with conversing(scheduler_of(), [puppet] * 20) as sessions, asyncio.TaskGroup() as tasks:
            seen = [tasks.create_task(watch(session, 1.5, loop)) for session in sessions]
        units = [[unit for _, unit in task.result()] for task in seen]
        assert {len(column) for column in units} == {37}
        for n in range(1, 37):
            assert len({id(column[n].image) for column in units}) == 1 and all(column[n].fresh for column in units)
        assert decoded == list(range(len(decoded))) and len(decoded) <= 37 + 3

    virtual(main)


def test_a_session_that_speaks_needs_no_idle_pictures(virtual, make_puppet):
    async def main(loop):
        puppet, decoded = watched(make_puppet, loop)
        async with conversing(scheduler_of(), [puppet]) as (session,), asyncio.TaskGroup() as tasks:
            seen = tasks.create_task(watch(session, 2.0, loop))
            await say(session, "a", speech(1.0))
        silent = [unit for _, unit in seen.result() if not unit.speaking]
        assert all(unit.fresh for _, unit in seen.result()) and len(decoded) < len(silent)

    virtual(main)


def test_after_a_cancel_the_first_silent_frame_has_its_picture(virtual, make_puppet):
    """Speech that was about to begin is cancelled: the pictures of its frames had not been asked for."""

    async def main(loop):
        puppet, _ = watched(make_puppet, loop)
        costs = BatchTimes({"lips": {1: 0.05}, "best": {1: 0.15}})  # speech begins nine frames after its lips
        async with conversing(scheduler_of(costs), [puppet]) as (session,):
            await asyncio.sleep(1.01)
            seen = asyncio.ensure_future(watch(session, 1.0, loop))
            await say(session, "a", speech(2.0))
            await asyncio.sleep(9 / FPS)
            session.cancel()
            units = [unit for _, unit in await seen]
            assert not any(unit.speaking for unit in units) and all(unit.fresh for unit in units)

    virtual(main)


def test_a_decoding_that_fails_ends_the_sessions_that_need_it_and_the_next_ones_try_again(virtual, make_puppet):
    async def main(loop):
        puppet, _ = watched(make_puppet, loop)
        scheduler = scheduler_of()
        with pytest.raises(ExceptionGroup, match="unhandled errors") as raised:
            async with conversing(scheduler, [puppet] * 2) as sessions:
                await asyncio.sleep(0.5)
                puppet.failure = OSError("the disk is gone")
                await asyncio.gather(*(session.ended() for session in sessions))
        assert {str(error) for error in raised.value.exceptions} == {"the disk is gone"}
        await scheduler.close()

    virtual(main)


def test_pictures_come_again_when_decoding_succeeds_again(virtual, make_puppet):
    async def main(loop):
        puppet, scheduler = make_puppet(), scheduler_of()
        idle = IdlePictures(puppet, scheduler)
        idle.join()
        puppet.failure = OSError("the disk is gone")
        idle.want(3, 1.0)
        await asyncio.sleep(0.1)
        with pytest.raises(OSError, match="the disk is gone"):
            idle.at(3)
        puppet.failure = None
        idle.want(3, 1.0)
        await asyncio.sleep(0.1)
        assert idle.at(3)[0, 0, 0] == 3 and idle.at(4) is None
        await scheduler.close()

    virtual(main)


def test_a_session_that_was_late_by_a_minute_still_shares_its_pictures(virtual, make_puppet):
    async def main(loop):
        puppet, decoded = watched(make_puppet, loop)
        scheduler = scheduler_of()
        idle = IdlePictures(puppet, scheduler)
        late, punctual = (Session(name, puppet, scheduler, SessionConfig(), idle=idle) for name in "ab")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(late.run())
            await asyncio.sleep(0.5)
            loop.spend(60.3)
            await asyncio.sleep(0.2)
            tasks.create_task(punctual.run())
            await asyncio.sleep(0.2)
            decoded.clear()
            one, other = await asyncio.gather(*(watch(session, 1.0, loop) for session in (late, punctual)))
            for session in (late, punctual):
                await session.close()
        await scheduler.close()
        assert all(unit.fresh for _, unit in one + other) and len(decoded) <= 26

    virtual(main)

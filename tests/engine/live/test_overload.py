"""A machine that cannot make every picture: those that it makes come evenly, and nothing else waits for them."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from talk import conversing, say, scheduler_of, speech, watch

from engine.live.batching import BatchTimes
from engine.live.quality import QualityController
from engine.media import FPS

STEP_FRAMES = 4


def talk(virtual, puppet, seconds=20.0, workers=1, level="best", real_time=False, cancel_s=None):
    """(time, unit) of a session that speaks on a machine with the puppet's times, and when its speech began."""
    puppet.level = level
    costs = BatchTimes({"lips": {1: puppet.lips_s}, level: {1: puppet.paint_s}})

    async def main(loop):
        puppet.clock = loop
        quality = QualityController((level,), lambda pace: costs.present_load(1, pace.rates_hz(STEP_FRAMES)) / workers)
        async with conversing(scheduler_of(costs, workers), (puppet,), quality=quality) as (session,):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, seconds + 2, loop))
                await asyncio.sleep(0.5)
                tasks.create_task(say(session, "a", speech(seconds), real_time=real_time))
                if cancel_s is not None:
                    await asyncio.sleep(cancel_s)
                    session.cancel()
            return seen.result()

    return virtual(main)


def fresh_frames(seen, after_s=5.0):
    """Frames of speech with a new picture, after the start."""
    return np.array([unit.index for moment, unit in seen if unit.speaking and unit.fresh and moment > after_s])


@pytest.mark.parametrize("real_time", [False, True])
@pytest.mark.parametrize(
    ("paint_s", "lips_s", "workers", "gap"),
    [
        (0.025, 0.030, 1, 1),
        (0.060, 0.030, 1, 2),
        (0.060, 0.030, 2, 1),
        (0.090, 0.020, 1, 3),
        (0.100, 0.045, 1, 4),
        (0.100, 0.045, 2, 2),
        (0.130, 0.090, 2, 3),
    ],
)
def test_new_pictures_come_evenly(virtual, make_puppet, paint_s, lips_s, workers, gap, real_time):
    seen = talk(virtual, make_puppet(paint_s=paint_s, lips_s=lips_s), workers=workers, real_time=real_time)
    gaps = np.diff(fresh_frames(seen))
    assert np.median(gaps) == gap and np.percentile(gaps, 99) <= gap and len(gaps) >= 13 * FPS / gap
    moments = np.array([moment for moment, _ in seen])
    assert np.allclose(np.diff(moments), 1 / FPS), "sound never waits"


def test_pictures_of_runs_come_evenly_too(virtual, make_puppet):
    puppet = make_puppet(paint_s=0.12, lips_s=0.03)
    seen = talk(virtual, puppet, level="fast-half")
    assert set(np.diff(fresh_frames(seen))) == {2}


@pytest.mark.parametrize("paint_s", [0.06, 0.1])
def test_a_barge_in_takes_effect_with_the_next_frame_and_the_mouth_closes(virtual, make_puppet, opening_of, paint_s):
    seen = talk(virtual, make_puppet(paint_s=paint_s, lips_s=0.03), cancel_s=4.01)
    after = [unit for moment, unit in seen if moment > 4.51]
    assert not any(unit.samples.any() for unit in after)
    assert not any(opening_of(unit.image) for unit in after[12:]), "half a second"


@pytest.mark.parametrize(("paint_s", "lips_s"), [(0.06, 0.03), (0.1, 0.045)])
def test_the_first_picture_comes_soon(virtual, make_puppet, paint_s, lips_s):
    seen = talk(virtual, make_puppet(paint_s=paint_s, lips_s=lips_s), real_time=True)
    first_s = next(moment for moment, unit in seen if unit.speaking and unit.fresh)
    assert first_s - 0.5 < 0.32 + 1.2 * (paint_s + lips_s) + 6 / FPS


def test_a_machine_that_becomes_slower_does_not_cut_the_speech(virtual, make_puppet):
    async def main(loop):
        puppet = make_puppet(paint_s=0.02, lips_s=0.01)
        puppet.clock = loop
        async with conversing(scheduler_of(), (puppet,)) as (session,):
            async with asyncio.TaskGroup() as tasks:
                seen = tasks.create_task(watch(session, 12, loop))
                tasks.create_task(say(session, "a", speech(10.0), real_time=True))
                await asyncio.sleep(2)
                puppet.paint_s, puppet.lips_s = 0.15, 0.06
            return seen.result()

    frames = [unit.index for _, unit in virtual(main) if unit.speaking]
    assert len(frames) == 10 * FPS and frames[-1] - frames[0] == len(frames) - 1

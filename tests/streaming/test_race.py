"""Coroutines that run until the first of them ends: what ends them, and what the caller learns."""

from __future__ import annotations

import asyncio

import pytest

from streaming.race import race


async def sleep_and_note(seconds, notes):
    try:
        await asyncio.sleep(seconds)
        notes.append("ended")
    except asyncio.CancelledError:
        notes.append("cancelled")
        raise


async def fail(seconds):
    await asyncio.sleep(seconds)
    raise ValueError("failed")


def test_the_first_to_end_is_returned_and_the_others_are_cancelled(virtual):
    async def main(loop):
        slow, quick = [], []
        assert await race(sleep_and_note(5, slow), sleep_and_note(1, quick), sleep_and_note(9, slow)) == 1
        assert (slow, quick) == (["cancelled", "cancelled"], ["ended"]) and loop.time() == pytest.approx(1)

    virtual(main)


def test_of_two_that_end_in_the_same_moment_the_lower_index_counts(virtual):
    async def main(loop):
        done = asyncio.Event()
        done.set()
        assert await race(done.wait(), done.wait()) == 0

    virtual(main)


def test_an_error_cancels_the_others_and_is_raised_in_a_group(virtual):
    async def main(loop):
        notes = []
        with pytest.raises(ExceptionGroup) as raised:
            await race(fail(1), sleep_and_note(5, notes))
        assert raised.group_contains(ValueError, match="failed") and notes == ["cancelled"]

    virtual(main)


def test_an_error_while_the_others_are_cancelled_is_raised_too(virtual):
    async def fail_at_its_end():
        try:
            await asyncio.sleep(5)
        finally:
            raise ValueError("failed at its end")

    async def main(loop):
        with pytest.raises(ExceptionGroup) as raised:
            await race(asyncio.sleep(1), fail_at_its_end())
        assert raised.group_contains(ValueError, match="at its end")

    virtual(main)


def test_cancelling_the_caller_cancels_all(virtual):
    async def main(loop):
        notes = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await race(sleep_and_note(5, notes), sleep_and_note(6, notes))
        assert notes == ["cancelled", "cancelled"]

    virtual(main)

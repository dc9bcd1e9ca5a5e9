"""MediaQueue: bounded, closable, and nothing is lost when a waiting task is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from engine.queues import MediaQueue, Policy, QueueClosed


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_items_come_out_in_order():
    queue = MediaQueue(3, Policy.WAIT)
    for item in "abc":
        await queue.put(item)
    assert [await queue.get() for _ in range(3)] == list("abc")


async def test_a_full_queue_makes_the_writer_wait_until_there_is_room():
    queue = MediaQueue(1, Policy.WAIT)
    await queue.put(1)
    writer = asyncio.create_task(queue.put(2))
    await settle()
    assert not writer.done() and len(queue) == 1
    assert await queue.get() == 1
    await writer
    assert await queue.get() == 2 and queue.dropped == 0


async def test_a_slow_reader_loses_the_oldest_and_the_writer_never_waits():
    queue = MediaQueue(2, Policy.DROP_OLDEST)
    for item in range(5):
        put = queue.put(item)
        with pytest.raises(StopIteration):
            put.send(None)  # finished without a wait
    assert queue.dropped == 3 and [await queue.get(), await queue.get()] == [3, 4]


async def test_the_next_item_inherits_from_a_dropped_one():
    queue = MediaQueue(2, Policy.DROP_OLDEST, inherit=lambda dropped, following: dropped + following)
    for item in "abcd":
        await queue.put(item)
    assert [await queue.get(), await queue.get()] == ["abc", "d"]
    narrow = MediaQueue(1, Policy.DROP_OLDEST, inherit=lambda dropped, following: dropped + following)
    for item in "abc":
        await narrow.put(item)
    assert await narrow.get() == "abc" and narrow.dropped == 2


async def test_a_closed_queue_gives_what_is_left_and_then_ends():
    queue = MediaQueue(4, Policy.WAIT)
    await queue.put(1)
    await queue.put(2)
    await queue.close()
    await queue.close()
    assert [item async for item in queue] == [1, 2]
    with pytest.raises(QueueClosed):
        await queue.get()
    with pytest.raises(QueueClosed):
        await queue.put(3)


@pytest.mark.parametrize("policy", Policy)
async def test_closing_wakes_everybody_who_waits(policy):
    full, empty = MediaQueue(1, policy), MediaQueue(1, policy)
    await full.put(0)
    tasks = [asyncio.create_task(empty.get()), asyncio.create_task(empty.get())]
    if policy is Policy.WAIT:
        tasks.append(asyncio.create_task(full.put(1)))
    await settle()
    await full.close()
    await empty.close()
    assert all(isinstance(r, QueueClosed) for r in await asyncio.gather(*tasks, return_exceptions=True))
    assert await full.get() == 0


async def test_a_cancelled_reader_takes_nothing_with_it():
    queue = MediaQueue(2, Policy.WAIT)
    readers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await settle()
    await queue.put("a")
    readers[0].cancel()  # already woken, not yet run
    cancelled, got = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(cancelled, asyncio.CancelledError) and got == "a"


async def test_a_cancelled_writer_leaves_nothing_behind():
    queue = MediaQueue(1, Policy.WAIT)
    await queue.put(1)
    writers = [asyncio.create_task(queue.put(item)) for item in (2, 3)]
    await settle()
    writers[0].cancel()
    await settle()
    assert await queue.get() == 1 and await queue.get() == 3 and len(queue) == 0


def test_a_queue_without_room_is_refused():
    with pytest.raises(ValueError, match="capacity 0"):
        MediaQueue(0, Policy.WAIT)


async def test_items_of_a_size_share_the_capacity_and_one_that_is_larger_than_all_of_it_stands_alone():
    queue = MediaQueue(10, Policy.WAIT, len)
    await queue.put("x" * 20)
    writer = asyncio.create_task(queue.put("abcdef"))
    await settle()
    assert not writer.done()
    assert len(await queue.get()) == 20
    await writer
    await queue.put("ghij")
    writer = asyncio.create_task(queue.put("k"))
    await settle()
    assert not writer.done() and await queue.get() == "abcdef"
    await writer


async def test_a_large_item_drops_as_many_of_the_oldest_as_it_needs():
    queue = MediaQueue(10, Policy.DROP_OLDEST, len)
    for item in ("aaaa", "bbbb", "cc", "dddddd"):
        await queue.put(item)
    assert queue.dropped == 2
    assert [await queue.get() for _ in range(2)] == ["cc", "dddddd"]

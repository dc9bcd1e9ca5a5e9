"""Race: run coroutines side by side until the first of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def race(*contestants: Coroutine[Any, Any, object]) -> int:
    """Run all until the first one returns, then cancel the others and wait for their end.

    Returns the index of the first one that returned; the lowest index where several did in the same moment. An error
    of any of them cancels the others and is raised in an ExceptionGroup, as by asyncio.TaskGroup. Cancelling the caller
    cancels all of them.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(contestant) for contestant in contestants]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = next(index for index, task in enumerate(tasks) if task.done())
        for task in tasks:
            task.cancel()
    return winner

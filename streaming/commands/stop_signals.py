"""StopSignals: SIGINT and SIGTERM as events. The first asks a command to finish, the second to end at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupting() -> Iterator[None]:
    """During the block both signals raise KeyboardInterrupt in the main thread, whatever it does: loading a network and
    running it for the first time leave the event loop no turn for minutes on some machines."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Catches the signals during the block; for the main thread's event loop."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def receive(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._received)  # which wakes the loop; Windows' has no add_signal_handler

        self._before = {number: signal.signal(number, receive) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

"""StopSignals: SIGINT and SIGTERM as events. The first asks a command to finish, the second to end at once."""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Catches the signals during the block; for the main thread's event loop."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def __enter__(self) -> Self:
        for number in STOPPING:
            asyncio.get_running_loop().add_signal_handler(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in STOPPING:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

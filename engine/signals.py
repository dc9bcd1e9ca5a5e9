"""Signals that end a command: each becomes a KeyboardInterrupt, so that the command removes its temporary files."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import BinaryIO

EXIT_CODE = 130  # of an interrupted command, as shells have it for Ctrl-C
ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")
    if hasattr(signal, name)  # Windows has the first two
)
GRACE_S = 5.0  # for a clean-up that nobody waits for


@contextmanager
def starting() -> Iterator[None]:
    """Ctrl-C ends the process at once and without a traceback: for the seconds of importing, when nothing is begun."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """The first signal raises KeyboardInterrupt in the main thread; more of them do not disturb the clean-up.

    Signals that are ignored (`nohup`) stay ignored. For the main thread.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with(pipe: BinaryIO) -> None:
    """End this process, as SIGTERM does, when `pipe` ends: the parent that holds its other end has ended, however."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(pipe.fileno(), 4096):  # without the lock of `pipe`, which Python needs for its own end
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, name="parent", daemon=True).start()

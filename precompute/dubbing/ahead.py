"""Reading ahead: an iterator that works in a thread of its own, a bounded number of items before its reader."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 0.1  # between two looks whether the reader has gone


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """`items`, of which up to `count` are made before they are asked for. An error arises where its item is due."""
    waiting: Queue[tuple[bool, object]] = Queue(count)
    gone = threading.Event()

    def put(entry: tuple[bool, object]) -> None:
        while not gone.is_set():
            try:
                return waiting.put(entry, timeout=PATIENCE_S)
            except Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put((True, item))
                if gone.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=read, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = waiting.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        gone.set()
        while thread.is_alive():  # the reader's picture goes with it
            try:
                waiting.get_nowait()
            except Empty:
                thread.join(PATIENCE_S)

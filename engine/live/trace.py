"""A trace of a live engine: what each thread did when, as Chrome's trace events, which Perfetto shows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import OutputError


class Tracer:
    """Collects events of any thread; `write` makes the file. An engine without a tracer spends nothing on it."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._events: list[dict[str, Any]] = []
        self._threads: dict[int, str] = {}

    @contextmanager
    def span(self, name: str, **facts: object) -> Iterator[None]:
        """The block is work of this thread."""
        began_us = self._now_us()
        try:
            yield
        finally:
            self._add(name, "X", began_us, dur=self._now_us() - began_us, args=facts)

    def instant(self, name: str, **facts: object) -> None:
        self._add(name, "i", self._now_us(), s="t", args=facts)

    def counter(self, name: str, value: float) -> None:
        self._add(name, "C", self._now_us(), args={"value": value})

    def write(self, path: Path) -> None:
        """Raises OutputError."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}
            for thread, name in self._threads.items()
        ]
        try:
            path.write_text(json.dumps({"traceEvents": names + self._events}))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error}); make room or choose another --trace") from error

    def _now_us(self) -> float:
        return (time.perf_counter() - self._began_s) * 1e6

    def _add(self, name: str, kind: str, at_us: float, **fields: object) -> None:
        thread = threading.get_native_id()
        self._threads[thread] = threading.current_thread().name
        self._events.append({"name": name, "ph": kind, "ts": at_us, "pid": 1, "tid": thread, **fields})

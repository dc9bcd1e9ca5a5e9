"""`personastream serve` whose threads have their names in /proc too, as all programs of Python 3.14 and later do."""

from __future__ import annotations

import ctypes
import sys
import threading

from streaming.__main__ import main

PR_SET_NAME = 15  # prctl(2)


def name_thread(*_: object) -> None:
    """The profile function of a new thread: gives it its name, and profiles nothing."""
    sys.setprofile(None)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl is not None:
        prctl(PR_SET_NAME, threading.current_thread().name.encode())


if __name__ == "__main__":
    threading.setprofile(name_thread)
    main()

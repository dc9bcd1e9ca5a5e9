"""The inference threads: they run the networks, behind the event loop and the encoders."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

NICENESS = 5  # sound, clock and encoders need little time, but at once


def inference_threads(count: int) -> ThreadPoolExecutor:
    """`count` threads of a lower priority than their process, on Linux; elsewhere of the same."""
    return ThreadPoolExecutor(count, thread_name_prefix="inference", initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a priority is the whole process'
        os.nice(NICENESS)

"""What a process that serves in real time sets up: its log and its garbage collection."""

from __future__ import annotations

import gc
import logging


def set_up_log() -> None:
    """Log to the standard error, without the libraries' chatter."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("aiortc", "aioice", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def freeze_garbage() -> None:
    """Exempt the objects that live as long as the process from garbage collection.

    They are about 300,000, most of them torch's. A full collection that visits all of them stops the pictures for a
    tenth of a second or more. Python therefore runs it rarely, and hundreds of closed peers stay in memory until then.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # the next full collection comes when the objects have grown by a quarter since this one

"""Locks of files and folders, which the system releases when their process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: it opens no folder, and renames no file that is open
    fcntl = None  # type: ignore[assignment]

AVAILABLE = fcntl is not None


@contextmanager
def held(path: Path, *, create: bool = False, wait: bool = True, follow: bool = True) -> Iterator[int | None]:
    """Hold the lock of a file or folder for the time of the block: its handle, None where the system has no such locks.

    create: it is a new file, with the permissions that the umask leaves.  wait: until another process releases it.
    follow: a link.

    Raises OSError, and BlockingIOError without `wait`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if create else os.O_RDONLY
    if fcntl is None:
        if create:
            os.close(os.open(path, flags, 0o666))
        yield None
        return
    handle = os.open(path, flags if follow else flags | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)

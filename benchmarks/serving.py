"""`personastream serve` in a separate process: load and memory of the measuring process do not count."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import PersonaStreamError

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0


class ServerEndError(PersonaStreamError):
    """The server ended before it listened, or with a failure."""

    code = "server-end"


@dataclass(frozen=True)
class ServerProcess:
    url: str
    pid: int


@contextlib.asynccontextmanager
async def serving(
    avatar: Path, *options: str, module: str = "streaming", start_timeout_s: float = START_TIMEOUT_S
) -> AsyncIterator[ServerProcess]:
    """Serve `avatar` on any free port; SIGTERM ends it. Raises ServerEndError with the server's last lines."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = (sys.executable, "-m", module, "serve", str(avatar), "--port", "0", *options)
    with tempfile.TemporaryFile("w+") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment
        )
        assert process.stdout
        url = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(start_timeout_s):
                    while url is None and (line := (await process.stdout.readline()).decode()):
                        url = re.search(r"http://[\w.:\[\]]+", line)
            if url is not None:
                yield ServerProcess(url[0], process.pid)
        finally:
            code = await _ended(process)
        if url is None or code != 0:
            log.seek(0)
            expected = f"expected it to listen within {start_timeout_s:g} s" if url is None else "expected 0 on SIGTERM"
            last_lines = "\n".join(log.read().splitlines()[-20:])
            raise ServerEndError(f"the server ended with exit code {code}; {expected}. Its last lines:\n{last_lines}")


async def _ended(process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        # Process.terminate would take the exit code of one that has just ended by itself away from asyncio.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()

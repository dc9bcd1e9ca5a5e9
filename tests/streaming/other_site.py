"""A web application of somebody else, for tests of the examples and of the element."""

from __future__ import annotations

import contextlib
from pathlib import Path

from aiohttp import web

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.asynccontextmanager
async def listening(app: web.Application):
    """The address, without a scheme, at which `app` is served."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

"""A local service with the behaviour that a test gives it, and the HTTP client that voices share."""

from __future__ import annotations

import contextlib

import aiohttp
import pytest
from aiohttp import web


@pytest.fixture
def service():
    """`async with service(path, handler) as url`: a real server on a free port, whose route answers GET and POST."""

    @contextlib.asynccontextmanager
    async def serve(path, handler):
        app = web.Application()
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return serve


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session

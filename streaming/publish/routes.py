"""The publish resource of a session over HTTP: list its destinations, add one, remove one.

The API calls a destination a publication.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.destination import Destination
from streaming.publish.sinks import is_file, open_sink
from streaming.server.address import address
from streaming.server.json_body import text_field
from streaming.server.live_session import LiveSession


async def list_all(request: web.Request, live_session: LiveSession) -> web.Response:
    """GET: {"publications": [...]}, each with its status."""
    destinations = live_session.destinations.values()
    return web.json_response({"publications": [_to_json(request, live_session, each) for each in destinations]})


async def show(request: web.Request, live_session: LiveSession) -> web.Response:
    """GET one of them."""
    return web.json_response(_to_json(request, live_session, _find(request, live_session)))


async def add(request: web.Request, live_session: LiveSession, config: EncoderConfig) -> web.Response:
    """POST {"url": ...}: 201 with the publication, which then connects. 422 for a URL that cannot be published to."""
    url = text_field(await request.read(), "url", "URL")
    if is_file(url):
        raise PublishError(f"{url[:80]}: not a URL; only --publish on the command line records to files")
    sink = await asyncio.to_thread(open_sink, url, live_session.session.avatar, config)
    body = _to_json(request, live_session, live_session.publish(url, sink))
    return web.json_response(body, status=201, headers={"Location": str(body["location"])})


async def remove(request: web.Request, live_session: LiveSession) -> web.Response:
    """DELETE: 204 at once; the sink sends what is queued and closes afterwards."""
    await _find(request, live_session).stop()
    return web.Response(status=204)


def _find(request: web.Request, live_session: LiveSession) -> Destination:
    destination = live_session.destinations.get(request.match_info["publication"])
    if destination is None:
        raise web.HTTPNotFound(text="no such publication; it has ended, or never existed")
    return destination


def _to_json(request: web.Request, live_session: LiveSession, destination: Destination) -> dict[str, str | int | None]:
    location = address(request, f"/v1/sessions/{live_session.session.id}/publish/{destination.id}")
    return {"id": destination.id, "location": location, **destination.status.to_json()}

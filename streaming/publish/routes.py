"""The publish resource of a session over HTTP: what it is published to, one more, one less."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from engine.errors import ProtocolError
from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish.destination import Publication
from streaming.publish.sinks import open_sink, publishes_file
from streaming.server.live_session import LiveSession


async def list_all(request: web.Request, live_session: LiveSession) -> web.Response:
    """GET: {"publications": [...]}, how each does."""
    return web.json_response(
        {"publications": [_shown(live_session, one) for one in live_session.publications.values()]}
    )


async def show(request: web.Request, live_session: LiveSession) -> web.Response:
    """GET of one."""
    return web.json_response(_shown(live_session, _find(request, live_session)))


async def add(request: web.Request, live_session: LiveSession, config: EncoderConfig) -> web.Response:
    """POST {"url": ...}: 201, the publication; it connects afterwards. 422 for a URL that cannot be published to."""
    url = _url(await request.read())
    if publishes_file(url):
        raise PublishError(f"{url[:80]}: no URL; files are recorded by the server's own --publish alone")
    sink = await asyncio.to_thread(open_sink, url, live_session.session.avatar, config)
    publication = live_session.publish(url, sink)
    shown = _shown(live_session, publication)
    return web.json_response(shown, status=201, headers={"Location": str(shown["location"])})


async def remove(request: web.Request, live_session: LiveSession) -> web.Response:
    """DELETE: 204; what was sent is brought to its end meanwhile."""
    await _find(request, live_session).stop()
    return web.Response(status=204)


def _find(request: web.Request, live_session: LiveSession) -> Publication:
    publication = live_session.publications.get(request.match_info["publication"])
    if publication is None:
        raise web.HTTPNotFound(text="no such publication; it has ended, or was never there")
    return publication


def _shown(live_session: LiveSession, publication: Publication) -> dict[str, str | int | None]:
    location = f"/v1/sessions/{live_session.session.id}/publish/{publication.id}"
    return {"id": publication.id, "location": location, **publication.status.to_json()}


def _url(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f'a body that is no JSON ({error}); expected {{"url": URL}}') from error
    url = found.get("url") if isinstance(found, dict) else None
    if not isinstance(url, str):
        raise ProtocolError(f'a body without a URL; expected {{"url": URL}}, found {found!r:.60}')
    return url

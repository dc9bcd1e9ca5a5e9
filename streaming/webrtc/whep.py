"""WHEP, the signalling of viewers (draft-ietf-wish-whep): a client posts its offer, the reply is the answer, and the
viewer is a resource. Also the plain JSON form that clients of aiortc's examples use."""

from __future__ import annotations

import json

from aiohttp import hdrs, web

from engine.errors import ProtocolError
from streaming.server.address import PROXIES, address
from streaming.server.limits import client_address
from streaming.server.live_session import LiveSession
from streaming.server.live_sessions import LiveSessions
from streaming.webrtc.ice import Ice
from streaming.webrtc.viewer import Viewer

MAX_SDP_BYTES = 64 * 1024
OFFER_TYPE = "application/sdp"
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"
JSON_TYPE = "application/json"


class Whep:
    """The routes of viewers. Problems: 400 for an offer that cannot be answered, 413, 415, 429 and 503; for candidates
    412 and 422 (RFC 9725, 4.3)."""

    def __init__(self, live_sessions: LiveSessions, ice: Ice):
        self._live_sessions, self._ice = live_sessions, ice

    def describe(self, live_session: LiveSession | None) -> web.Response:
        """OPTIONS: the media type of offers and, if `live_session` is given, its ICE servers."""
        response = web.Response(status=204, headers={"Accept-Post": OFFER_TYPE, "Allow": "OPTIONS, POST"})
        return response if live_session is None else self._with_servers(response, live_session.session.id)

    async def add_viewer(self, request: web.Request, live_session: LiveSession) -> web.Response:
        """POST an offer: 201 with the answer, the viewer's URL, the tag of its ICE session, and ICE servers."""
        viewer, answer = await self._add(request, live_session, await _read(request, OFFER_TYPE))
        headers = {
            "Location": _location(request, live_session, viewer),
            "ETag": viewer.etag,
            "Accept-Patch": TRICKLE_TYPE,
            "Cache-Control": "no-store",
        }
        response = web.Response(status=201, text=answer, content_type=OFFER_TYPE, headers=headers)
        return self._with_servers(response, viewer.id)

    async def answer_json(self, request: web.Request, live_session: LiveSession) -> web.Response:
        """POST {"sdp", "type": "offer"}: 201 {"sdp", "type": "answer"}."""
        viewer, answer = await self._add(request, live_session, _offer_in(await _read(request, JSON_TYPE)))
        body = {"sdp": answer, "type": "answer"}
        headers = {
            "Location": _location(request, live_session, viewer),
            "ETag": viewer.etag,
            "Cache-Control": "no-store",
        }
        return self._with_servers(web.json_response(body, status=201, headers=headers), viewer.id)

    async def _add(self, request: web.Request, live_session: LiveSession, offer: str) -> tuple[Viewer, str]:
        return await self._live_sessions.add_viewer(live_session, offer, client_address(request, request.app[PROXIES]))

    def _with_servers(self, response: web.Response, name: str) -> web.Response:
        for link in self._ice.links(name):
            response.headers.add(hdrs.LINK, link)
        return response


async def trickle(request: web.Request, live_session: LiveSession) -> web.Response:
    """PATCH: add candidates of the peer to its ICE session.

    If-Match names it. RFC 9725 has 428 for a request without, but players leave it out (npm's whip-whep), and a viewer
    has one ICE session for its whole life.
    """
    viewer = _viewer(request, live_session)
    named = request.headers.get(hdrs.IF_MATCH, viewer.etag)
    if named.strip() == "*":
        raise web.HTTPUnprocessableEntity(text="ICE restarts are not supported; post a new offer")
    if named != viewer.etag and viewer.etag not in (
        f'"{tag.value}"' for tag in request.if_match or () if not tag.is_weak
    ):
        raise web.HTTPPreconditionFailed(text=f"If-Match is {named:.100}, the viewer's ETag is {viewer.etag}")
    await viewer.add_candidates(await _read(request, TRICKLE_TYPE))
    return web.Response(status=204)


async def remove_viewer(request: web.Request, live_session: LiveSession) -> web.Response:
    """DELETE: close the viewer's peer."""
    viewer = _viewer(request, live_session)
    viewer.leave("deleted")
    await viewer.close()
    return web.Response(status=200)


def _location(request: web.Request, live_session: LiveSession, viewer: Viewer) -> str:
    return address(request, f"/v1/sessions/{live_session.session.id}/whep/{viewer.id}")


def _viewer(request: web.Request, live_session: LiveSession) -> Viewer:
    viewer = live_session.viewers.get(request.match_info["viewer"])
    if viewer is None:
        raise web.HTTPNotFound(text="no such viewer; it has left, or never existed")
    return viewer


def _offer_in(body: str) -> str:
    """The SDP of a JSON body. Raises ProtocolError."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f'the body is not JSON ({error}); expected {{"sdp", "type": "offer"}}') from error
    if not isinstance(fields, dict) or not isinstance(fields.get("sdp"), str) or fields.get("type") != "offer":
        raise ProtocolError(f'the body has no offer; expected {{"sdp", "type": "offer"}}, found {body:.60}')
    return str(fields["sdp"])


async def _read(request: web.Request, expected: str) -> str:
    if request.content_type != expected:
        raise web.HTTPUnsupportedMediaType(text=f"the body is of type {request.content_type}; expected {expected}")
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:  # beyond the limit of every route
        raise _too_large("more bytes than any route takes") from None
    if len(body) > MAX_SDP_BYTES:
        raise _too_large(f"{len(body)} bytes")
    return body.decode("utf-8", "replace")


def _too_large(size: str) -> web.HTTPRequestEntityTooLarge:
    text = f"the body has {size}; expected at most {MAX_SDP_BYTES} bytes: one audio and one video section"
    return web.HTTPRequestEntityTooLarge(max_size=MAX_SDP_BYTES, actual_size=0, text=text)

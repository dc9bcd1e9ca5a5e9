"""WHEP, the signalling of viewers: an offer is posted, the answer is the reply, the viewer is a resource."""

from __future__ import annotations

from aiohttp import web

from streaming.lease import Lease
from streaming.peer import Viewer

MAX_SDP_BYTES = 64 * 1024
OFFER_TYPE = "application/sdp"
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"


def describe() -> web.Response:
    """OPTIONS of the endpoint: what it takes."""
    return web.Response(status=204, headers={"Accept-Post": OFFER_TYPE, "Allow": "OPTIONS, POST"})


async def add_viewer(request: web.Request, lease: Lease) -> web.Response:
    """POST an offer: 201 with the answer, the viewer's address and the tag of its ICE session."""
    viewer, answer = await lease.add_viewer(await _read(request, OFFER_TYPE))
    headers = {
        "Location": f"/v1/sessions/{lease.session.id}/whep/{viewer.id}",
        "ETag": viewer.etag,
        "Accept-Patch": TRICKLE_TYPE,
    }
    return web.Response(status=201, text=answer, content_type=OFFER_TYPE, headers=headers)


async def trickle(request: web.Request, lease: Lease) -> web.Response:
    """PATCH more candidates of the peer into its ICE session, which If-Match names where it is given."""
    viewer = find_viewer(request, lease)
    expected = request.headers.get("If-Match")
    if expected == "*":
        raise web.HTTPUnprocessableEntity(text="ICE restarts are not supported; post a new offer")
    if expected is not None and expected != viewer.etag:
        raise web.HTTPPreconditionFailed(text=f"If-Match is {expected}, the viewer's ETag is {viewer.etag}")
    await viewer.add_candidates(await _read(request, TRICKLE_TYPE))
    return web.Response(status=204)


async def remove_viewer(request: web.Request, lease: Lease) -> web.Response:
    """DELETE the viewer: its peer closes."""
    viewer = find_viewer(request, lease)
    await viewer.close()
    return web.Response(status=200)


def find_viewer(request: web.Request, lease: Lease) -> Viewer:
    viewer = lease.viewers.get(request.match_info["viewer"])
    if viewer is None:
        raise web.HTTPNotFound(text="no such viewer; it has left, or was never here")
    return viewer


async def _read(request: web.Request, expected: str) -> str:
    if request.content_type != expected:
        raise web.HTTPUnsupportedMediaType(text=f"a body of type {request.content_type}; expected {expected}")
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:  # beyond the limit of every route, which is the larger one
        raise _too_large("more bytes than any route takes") from None
    if len(body) > MAX_SDP_BYTES:
        raise _too_large(f"{len(body)} bytes")
    return body.decode("utf-8", "replace")


def _too_large(found: str) -> web.HTTPRequestEntityTooLarge:
    text = f"a body of {found}; expected at most {MAX_SDP_BYTES} bytes: offer one audio and one video section, no more"
    return web.HTTPRequestEntityTooLarge(max_size=MAX_SDP_BYTES, actual_size=0, text=text)

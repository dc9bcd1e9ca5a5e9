"""The routes of dubs: upload, state, events, result, and deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.errors import DrainingError, ProtocolError
from engine.files import SIGNATURES
from streaming.config import ServerConfig
from streaming.server.access import Access
from streaming.server.address import address
from streaming.server.auth import token_of, unauthorized
from streaming.server.dub_job import DubJob, State
from streaming.server.dub_upload import Upload
from streaming.server.dubs import Dubs
from streaming.server.event_stream import send, server_sent
from streaming.server.live_sessions import LiveSessions
from streaming.voices.voice import Voice

TYPES = {".mp4": "video/mp4", ".mkv": "video/webm"}  # by signature; browsers play Matroska under this name if at all
# Files of strangers come from our origin: no browser may take one for a page of ours, and the report runs nothing.
REPORT_POLICY = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
DubRoute = Callable[[web.Request, DubJob], Awaitable[web.StreamResponse]]


class DubRoutes:
    """Everything under /v1/dubs."""

    def __init__(
        self, dubs: Dubs, live_sessions: LiveSessions, config: ServerConfig, voices: Mapping[str, Voice], access: Access
    ):
        self._dubs, self._live_sessions, self._config = dubs, live_sessions, config
        self._voices, self._access = voices, access

    def table(self) -> list[web.RouteDef]:
        dub, key, of_dub = "/v1/dubs/{dub}", self._access.with_key, self._of_dub
        return [
            web.get("/v1/dubs", key(self._list)),
            web.post("/v1/dubs", key(self._add)),
            web.get(dub, of_dub(self._show)),
            web.delete(dub, of_dub(self._remove)),
            web.get(f"{dub}/events", of_dub(self._events)),
            web.get(f"{dub}/result", of_dub(self._result)),
            web.get(f"{dub}/source", of_dub(self._source)),
            web.get(f"{dub}/report", of_dub(self._report)),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        self._require()
        dubs = self._config.dubs
        limits = {"max_bytes": dubs.max_bytes, "max_s": dubs.max_s, "keep_s": dubs.keep_s}
        return _answer({"dubs": [self._status(request, job) for job in self._dubs], "limits": limits})

    async def _add(self, request: web.Request) -> web.Response:
        self._require()
        if self._live_sessions.draining:
            raise DrainingError("the server is shutting down; try another one")
        async with self._dubs.place() as folder:
            upload = Upload(folder, self._config.dubs, self._config.timeouts.upload_stall_s, self._dubs.disk)
            try:
                form = await upload.receive(request, self._voices)
            except ConnectionError as error:  # nobody will read the answer
                raise ProtocolError(f"the upload was broken off ({error})") from error
            job = self._dubs.add(folder, form)
        body = {**self._status(request, job, job.token.text), "token": job.token.text}
        return _answer(body, status=201, Location=body["urls"]["self"])

    async def _show(self, request: web.Request, job: DubJob) -> web.Response:
        return _answer(self._status(request, job))

    async def _remove(self, request: web.Request, job: DubJob) -> web.Response:
        await self._dubs.remove(job)
        return web.Response(status=204)

    async def _events(self, request: web.Request, job: DubJob) -> web.StreamResponse:
        """The state now and after each change; the last event is the end."""
        changes = job.listen()
        if job.over:
            await changes.close()

        def encode(change: None) -> bytes:
            return server_sent("dub", self._status(request, job))

        try:
            return await send(request, encode(None), changes, encode, self._config.timeouts.event_keepalive_s)
        finally:
            job.forget(changes)

    async def _result(self, request: web.Request, job: DubJob) -> web.FileResponse:
        return _file(_finished(job).output, "video/mp4")

    async def _source(self, request: web.Request, job: DubJob) -> web.FileResponse:
        return _file(_finished(job).form.video)

    async def _report(self, request: web.Request, job: DubJob) -> web.FileResponse:
        report = _finished(job).form.options.report
        assert report is not None
        return _file(report, "text/html", REPORT_POLICY)

    def _require(self) -> None:
        if not self._config.dubs.at_once:
            raise web.HTTPForbidden(text="this server dubs no videos; start it with --dubs.at-once 1")

    def _of_dub(self, route: DubRoute) -> Handler:
        """A route of one dub: it must exist, and the request must carry its token or a server key."""

        async def handler(request: web.Request) -> web.StreamResponse:
            job, token = self._dubs.find(request.match_info["dub"]), token_of(request)
            if job is None:
                raise web.HTTPNotFound(text="no such dub; it was deleted, or never uploaded. POST /v1/dubs")
            now = asyncio.get_running_loop().time()
            if not (job.token.admits(token, now) or self._access.is_key(token)):
                raise unauthorized("expected the dub's token, as `Authorization: Bearer TOKEN` or `?token=TOKEN`")
            return await route(request, job)

        return handler

    def _status(self, request: web.Request, job: DubJob, token: str | None = None) -> dict[str, Any]:
        path, kept_s = f"/v1/dubs/{job.id}", None
        if job.ended_at is not None:
            kept_s = round(max(0.0, job.ended_at + self._config.dubs.keep_s - asyncio.get_running_loop().time()))
        names = ("events", "result", "source", "report") if job.state is State.FINISHED else ("events",)
        urls = {name: address(request, f"{path}/{name}", token) for name in names}
        urls["self"] = address(request, path, token)
        return {**job.status(), "ahead": self._dubs.position(job), "kept_s": kept_s, "urls": urls}


def _finished(job: DubJob) -> DubJob:
    if job.state is not State.FINISHED:
        raise web.HTTPConflict(text=f"the dub is {job.state.value}; its files can be had when it is finished")
    return job


def _answer(body: dict[str, Any], status: int = 200, **headers: str) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store", **headers})


def _file(
    path: Path, content_type: str | None = None, headers: Mapping[str, str] = MappingProxyType({})
) -> web.FileResponse:
    """A file, whole or in ranges; by default a video, with the type that its first bytes tell."""
    if content_type is None:
        with path.open("rb") as file:
            head = file.read(16)
        content_type = next((TYPES[each] for each in TYPES if _begins_like(head, each)), "application/octet-stream")
    return web.FileResponse(path, headers={**GUARDS, **headers, "Content-Type": content_type})


def _begins_like(head: bytes, suffix: str) -> bool:
    return any(head[place:].startswith(mark) for place, mark in SIGNATURES[suffix])

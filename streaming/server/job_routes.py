"""The routes that all jobs have: list, state, events, deletion; and the files of jobs."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.errors import DrainingError
from engine.files import SIGNATURES
from streaming.config import JobsConfig, ServerConfig
from streaming.server.access import Access
from streaming.server.address import address
from streaming.server.auth import token_of, unauthorized
from streaming.server.event_stream import send, server_sent
from streaming.server.job import Job, State
from streaming.server.jobs import Jobs
from streaming.server.live_sessions import LiveSessions
from streaming.server.upload import Upload

TYPES = {".mp4": "video/mp4", ".mkv": "video/webm"}  # by signature; browsers play Matroska under this name if at all
# Files of strangers come from our origin: no browser may take one for a page of ours, and the report runs nothing.
REPORT_POLICY = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
JobT = TypeVar("JobT", bound=Job)
JobRoute = Callable[[web.Request, JobT], Awaitable[web.StreamResponse]]


class JobRoutes(ABC, Generic[JobT]):
    """The routes below `path`, such as /v1/dubs.

    files: a finished job has them, by the names of their routes.  disabled: what a server says that takes no jobs.
    """

    path: str
    files: tuple[str, ...]
    disabled: str

    def __init__(
        self, jobs: Jobs[JobT], limits: JobsConfig, live_sessions: LiveSessions, config: ServerConfig, access: Access
    ):
        self.jobs, self.limits, self.access = jobs, limits, access
        self._live_sessions, self._timeouts = live_sessions, config.timeouts

    def table(self) -> list[web.RouteDef]:
        job, of_job = f"{self.path}/{{job}}", self.of_job
        return [
            web.get(self.path, self.access.with_key(self._list)),
            web.get(job, of_job(self._show)),
            web.delete(job, of_job(self._remove)),
            web.get(f"{job}/events", of_job(self._events)),
            *(web.get(f"{job}/{name}", of_job(self._file)) for name in self.files),
        ]

    @abstractmethod
    async def receive(self, request: web.Request, upload: Upload, folder: Path) -> JobT:
        """The job of an uploaded form."""

    @abstractmethod
    async def file(self, job: JobT, name: str) -> web.StreamResponse:
        """A file of a finished job."""

    async def add(self, request: web.Request) -> web.Response:
        """Receive a form and queue its job."""
        async with self.uploading() as (upload, folder):
            job = await self.receive(request, upload, folder)
            self.jobs.add(job)
        body = {**self._status(request, job, job.token.text), "token": job.token.text}
        return answer(body, status=201, Location=body["urls"]["self"])

    @contextlib.asynccontextmanager
    async def uploading(self) -> AsyncIterator[tuple[Upload, Path]]:
        """An upload and its folder. Raises HTTPForbidden, DrainingError, CapacityError."""
        self.require()
        if self._live_sessions.draining:
            raise DrainingError("the server is shutting down; try another one")
        async with self.jobs.place() as folder:
            yield Upload(folder, self.limits, self._timeouts.upload_stall_s, self.jobs.disk), folder

    def require(self) -> None:
        """Raises HTTPForbidden where the server takes no such jobs."""
        if not self.limits.at_once:
            raise web.HTTPForbidden(text=self.disabled)

    def of_job(self, route: JobRoute[JobT]) -> Handler:
        """A route of one job: it must exist, and the request must carry its token or a server key."""

        async def handler(request: web.Request) -> web.StreamResponse:
            job, token, kind = self.jobs.find(request.match_info["job"]), token_of(request), self.jobs.kind
            if job is None:
                raise web.HTTPNotFound(text=f"no such {kind}; it was deleted, or never uploaded")
            now = asyncio.get_running_loop().time()
            if not (job.token.admits(token, now) or self.access.is_key(token)):
                raise unauthorized(f"expected the {kind}'s token, as `Authorization: Bearer TOKEN` or `?token=TOKEN`")
            return await route(request, job)

        return handler

    async def _list(self, request: web.Request) -> web.Response:
        self.require()
        limits = {name: getattr(self.limits, name) for name in ("max_bytes", "max_s", "keep_s")}
        return answer({f"{self.jobs.kind}s": [self._status(request, job) for job in self.jobs], "limits": limits})

    async def _show(self, request: web.Request, job: JobT) -> web.Response:
        return answer(self._status(request, job))

    async def _remove(self, request: web.Request, job: JobT) -> web.Response:
        await self.jobs.remove(job)
        return web.Response(status=204)

    async def _events(self, request: web.Request, job: JobT) -> web.StreamResponse:
        """The state now and after each change; the last event is the end."""
        changes = job.listen()
        if job.over:
            await changes.close()

        def encode(change: None) -> bytes:
            return server_sent(self.jobs.kind, self._status(request, job))

        try:
            return await send(request, encode(None), changes, encode, self._timeouts.event_keepalive_s)
        finally:
            job.forget(changes)

    async def _file(self, request: web.Request, job: JobT) -> web.StreamResponse:
        if job.state is not State.FINISHED:
            raise web.HTTPConflict(
                text=f"the {self.jobs.kind} is {job.state.value}; its files can be had when it is finished"
            )
        return await self.file(job, request.path.rpartition("/")[2])

    def _status(self, request: web.Request, job: JobT, token: str | None = None) -> dict[str, Any]:
        path, kept_s = f"{self.path}/{job.id}", None
        if job.ended_at is not None:
            kept_s = round(max(0.0, job.ended_at + self.limits.keep_s - asyncio.get_running_loop().time()))
        names = ("events", *self.files) if job.state is State.FINISHED else ("events",)
        urls = {name: address(request, f"{path}/{name}", token) for name in names}
        urls["self"] = address(request, path, token)
        return {**job.status(), "ahead": self.jobs.position(job), "kept_s": kept_s, "urls": urls}


def answer(body: dict[str, Any], status: int = 200, **headers: str) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store", **headers})


def file_of(
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

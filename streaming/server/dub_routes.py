"""The routes of dubs: upload and results, beside those of all jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from streaming.config import ServerConfig
from streaming.server.access import Access
from streaming.server.dub_form import dub_form
from streaming.server.dub_job import DubJob
from streaming.server.job_routes import REPORT_POLICY, JobRoutes, file_of
from streaming.server.jobs import Jobs
from streaming.server.live_sessions import LiveSessions
from streaming.server.upload import Upload
from streaming.voices.voice import Voice


class DubRoutes(JobRoutes[DubJob]):
    """Everything under /v1/dubs."""

    path = "/v1/dubs"
    files = ("result", "source", "report")
    disabled = "this server dubs no videos; start it with --dubs.at-once 1"

    def __init__(
        self,
        jobs: Jobs[DubJob],
        live_sessions: LiveSessions,
        config: ServerConfig,
        voices: Mapping[str, Voice],
        access: Access,
    ):
        super().__init__(jobs, config.dubs, live_sessions, config, access)
        self._voices = voices

    def table(self) -> list[web.RouteDef]:
        return [*super().table(), web.post(self.path, self.access.with_key(self.add))]

    async def receive(self, request: web.Request, upload: Upload, folder: Path) -> DubJob:
        form = await dub_form(upload, request, self._voices, folder)
        return DubJob(folder, form, asyncio.get_running_loop().time())

    async def file(self, job: DubJob, name: str) -> web.FileResponse:
        if name == "result":
            return file_of(job.output, "video/mp4")
        if name == "source":
            return file_of(job.video)
        assert job.form.options.report is not None
        return file_of(job.form.options.report, "text/html", REPORT_POLICY)

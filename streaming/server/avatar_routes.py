"""The routes that make and change avatars: enrolments, and made avatars by name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from aiohttp import web

from engine.avatar.avatar import Avatar
from engine.avatar.file import SUFFIX
from engine.errors import AvatarFileError, ProtocolError, UnknownAvatarError
from engine.media import FPS
from streaming.config import ServerConfig
from streaming.errors import AvatarExistsError
from streaming.server.access import Access
from streaming.server.avatar_probe import check_avatar
from streaming.server.enrolment_job import EnrolmentForm, EnrolmentJob
from streaming.server.job_routes import GUARDS, REPORT_POLICY, JobRoutes, answer, file_of
from streaming.server.jobs import Jobs
from streaming.server.json_body import fields_of
from streaming.server.live_sessions import LiveSessions
from streaming.server.made_avatars import MadeAvatars, checked_consent, checked_name
from streaming.server.upload import Fields, Upload, about

FIELDS = Fields(
    files=re.compile("video"), texts=frozenset({"name", "consent"}), expected="video, name of the avatar, consent"
)
CHECKS = {"name": checked_name, "consent": checked_consent}


class AvatarRoutes(JobRoutes[EnrolmentJob]):
    """Everything under /v1/enrolments, and the routes under /v1/avatars that change avatars.

    avatars: those that are loaded.
    """

    path = "/v1/enrolments"
    files = ("result", "report")
    disabled = "this server makes no avatars; start it with --enrolments.at-once 1"

    def __init__(
        self,
        jobs: Jobs[EnrolmentJob],
        live_sessions: LiveSessions,
        config: ServerConfig,
        avatars: Callable[[], Mapping[str, Avatar]],
        made: MadeAvatars,
        access: Access,
    ):
        super().__init__(jobs, config.enrolments, live_sessions, config, access)
        self._avatars, self._made = avatars, made

    def table(self) -> list[web.RouteDef]:
        avatar, key = "/v1/avatars/{avatar}", self.access.with_key
        return [
            *super().table(),
            web.post("/v1/avatars", key(self.add)),
            web.get(avatar, key(self._show_avatar)),
            web.put(avatar, key(self._put)),
            web.patch(avatar, key(self._change)),
            web.delete(avatar, key(self._delete)),
            web.get(f"{avatar}/file", key(self._download)),
            web.get(f"{avatar}/report", key(self._show_report)),
        ]

    async def receive(self, request: web.Request, upload: Upload, folder: Path) -> EnrolmentJob:
        parts = await upload.form(request, FIELDS)
        texts = {}
        for name, check in CHECKS.items():
            with about(name):
                if name not in parts.texts:
                    raise ProtocolError(f"no {name}; expected {FIELDS.expected}")
                texts[name] = check(parts.texts[name])
        with about("name"):
            self._check_free(texts["name"])
        with about("video"):
            if "video" not in parts.files:
                raise ProtocolError("no video; expected a file in the field `video`")
            await upload.check_video(parts.files["video"], parts.names["video"])
        with about("name"):
            self._check_free(texts["name"])  # the check of the video took time
        form = EnrolmentForm(video=parts.files["video"], video_name=parts.names["video"], **texts)
        return EnrolmentJob(folder, form, self._made, asyncio.get_running_loop().time())

    async def file(self, job: EnrolmentJob, name: str) -> web.StreamResponse:
        return self._file_of(job.name) if name == "result" else await self._report_of(job.name)

    def _check_free(self, name: str) -> None:
        self._made.check_free(name)
        if any(job.name == name and not job.over for job in self.jobs):
            raise AvatarExistsError(f"an avatar {name!r} is being made; choose another name")

    async def _show_avatar(self, request: web.Request) -> web.Response:
        name = request.match_info["avatar"]
        avatar = self._find(name)
        manifest = avatar.manifest
        return answer(
            {
                "name": name,
                "width": avatar.width,
                "height": avatar.height,
                "seconds": round(manifest.frames / FPS, 2),
                "created": manifest.created,
                "consent": manifest.consent,
                "made": name in self._made,
            }
        )

    async def _put(self, request: web.Request) -> web.Response:
        name = checked_name(request.match_info["avatar"])
        async with self.uploading() as (upload, folder):
            self._check_free(name)
            file = folder / f"{name}{SUFFIX}"
            await upload.file(request, file)
            try:
                await check_avatar(file)
            except AvatarFileError as error:
                raise AvatarFileError(str(error).replace(f"{folder}/", "")) from error
            await self._made.install(name, file)
        return web.Response(status=201, headers={"Location": request.path})

    async def _change(self, request: web.Request) -> web.Response:
        texts = {}
        for name, text in fields_of(await request.read(), CHECKS).items():
            with about(name):
                texts[name] = CHECKS[name](text)
        await self._made.change(request.match_info["avatar"], new_name=texts.get("name"), consent=texts.get("consent"))
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        await self._made.remove(request.match_info["avatar"])
        return web.Response(status=204)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        return self._file_of(request.match_info["avatar"])

    async def _show_report(self, request: web.Request) -> web.StreamResponse:
        return await self._report_of(request.match_info["avatar"])

    def _file_of(self, name: str) -> web.FileResponse:
        return file_of(self._made.path(name), "application/octet-stream")

    async def _report_of(self, name: str) -> web.Response:
        page = await asyncio.to_thread(self._find(name).report_html)
        return web.Response(text=page, content_type="text/html", headers={**GUARDS, **REPORT_POLICY})

    def _find(self, name: str) -> Avatar:
        avatar = self._avatars().get(name)
        if avatar is None:
            raise UnknownAvatarError(f"no avatar {name!r} is loaded; GET /v1/avatars lists those that are")
        return avatar

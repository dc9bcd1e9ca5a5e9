"""What there is: avatars, voices, samples, and the page with its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from aiohttp import hdrs, web

from engine.errors import UnknownAvatarError
from engine.host import Host
from streaming.samples import Sample
from streaming.voices.voice import Voice

WEB = Path(__file__).parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; "
    "img-src 'self' data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",  # the page's address may hold a key
}


class Listing:
    """The routes that only show."""

    def __init__(self, host: Host, voices: Mapping[str, Voice], samples: Mapping[str, Sample]):
        self._host, self._voices, self._samples = host, voices, samples

    async def avatars(self, request: web.Request) -> web.Response:
        avatars = [
            {
                "name": name,
                "width": avatar.width,
                "height": avatar.height,
                "thumbnail": f"/v1/avatars/{quote(name)}/thumbnail.jpg",
            }
            for name, avatar in self._host.avatars.items()
        ]
        return web.json_response({"avatars": avatars})

    async def thumbnail(self, request: web.Request) -> web.Response:
        avatar = self._host.avatars.get(request.match_info["avatar"])
        if avatar is None:
            raise UnknownAvatarError(f"no avatar {request.match_info['avatar']!r}; GET /v1/avatars lists them")
        return web.Response(body=avatar.thumbnail_jpeg, content_type="image/jpeg")

    async def voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": list(self._voices)})

    async def samples(self, request: web.Request) -> web.Response:
        samples = [
            {
                "name": sample.name,
                "url": f"/v1/samples/{quote(sample.name)}.wav",
                "duration_s": round(sample.duration_s, 2),
            }
            for sample in self._samples.values()
        ]
        return web.json_response({"samples": samples})

    async def sample(self, request: web.Request) -> web.FileResponse:
        sample = self._samples.get(request.match_info["sample"])
        if sample is None:
            raise web.HTTPNotFound(text="no such sample; GET /v1/samples lists them")
        return web.FileResponse(sample.path, headers={"Content-Type": "audio/wav"})

    async def page(self, request: web.Request) -> web.FileResponse:
        path = WEB / request.match_info.get("file", "index.html")
        if not path.is_file():
            raise web.HTTPNotFound(text=f"no page {request.path}")
        # Pages of every site may load the element; what it may do at this server, --cors-origins says.
        shared = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*"} if path.suffix == ".js" else {}
        return web.FileResponse(path, headers=PAGE_HEADERS | shared)

"""Catalog: the avatars, voices and samples that the server offers, and its page."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from engine.errors import MediaError, UnknownAvatarError
from streaming.server.address import address

WEB = Path(__file__).parents[1] / "web"


def page_headers(connect: str) -> dict[str, str]:
    """Headers of the page; `connect`: what it may connect to beside its own server and websockets."""
    return {
        "Content-Security-Policy": f"default-src 'self'; connect-src 'self' {connect}ws: wss:; media-src 'self' blob:; "
        "img-src 'self' data: blob:; frame-ancestors 'none'",
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",  # the page's address may hold a key
    }


class Listed(Protocol):
    """What the catalog shows of an avatar."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def thumbnail_jpeg(self) -> bytes: ...


class Catalog:
    """The routes that only read.

    avatars, voices: those on offer now.  elsewhere: the page also uses servers at other addresses.
    """

    def __init__(
        self,
        avatars: Callable[[], Mapping[str, Listed]],
        voices: Callable[[], Iterable[str]],
        samples: Mapping[str, Sample],
        *,
        elsewhere: bool = False,
    ):
        self._avatars, self._voices, self._samples = avatars, voices, samples
        self._page_headers = page_headers("http: https: " if elsewhere else "")

    def table(self, guarded: Callable[[Handler], Handler]) -> list[web.RouteDef]:
        """guarded: the thumbnails' guard."""
        return [
            web.get("/v1/avatars", self.avatars),
            web.get("/v1/avatars/{avatar}/thumbnail.jpg", guarded(self.thumbnail)),
            web.get("/v1/voices", self.voices),
            web.get("/v1/samples", self.samples),
            web.get("/v1/samples/{sample}.wav", self.sample),
            web.get("/", self.page),
            web.get(r"/{file:[a-z-]+\.(?:js|css|svg)}", self.page),
        ]

    async def avatars(self, request: web.Request) -> web.Response:
        avatars = [
            {
                "name": name,
                "width": avatar.width,
                "height": avatar.height,
                "thumbnail": address(request, f"/v1/avatars/{quote(name)}/thumbnail.jpg"),
            }
            for name, avatar in self._avatars().items()
        ]
        return web.json_response({"avatars": avatars})

    async def thumbnail(self, request: web.Request) -> web.Response:
        avatar = self._avatars().get(request.match_info["avatar"])
        if avatar is None:
            raise UnknownAvatarError(f"no avatar {request.match_info['avatar']!r}; GET /v1/avatars lists them")
        return web.Response(body=avatar.thumbnail_jpeg, content_type="image/jpeg")

    async def voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": list(self._voices())})

    async def samples(self, request: web.Request) -> web.Response:
        samples = [
            {
                "name": sample.name,
                "url": address(request, f"/v1/samples/{quote(sample.name)}.wav"),
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
            raise web.HTTPNotFound(text=f"no file {request.path}")
        # Pages of every site may load the element; --cors-origins limits its use of this server's API.
        shared = {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*"} if path.suffix == ".js" else {}
        return web.FileResponse(path, headers=self._page_headers | shared)


@dataclass(frozen=True)
class Sample:
    """A WAV file that the page offers to play through the avatar."""

    name: str
    path: Path
    duration_s: float


def list_samples(folder: Path | None) -> dict[str, Sample]:
    """The samples of a folder by name. Raises MediaError for a file that is not PCM WAV."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise MediaError(f"{folder}: not a folder; expected a folder of WAV files for --samples")
    return {path.stem: _read_sample(path) for path in sorted(folder.glob("*.wav"))}


def _read_sample(path: Path) -> Sample:
    try:
        with wave.open(str(path)) as sound:
            return Sample(path.stem, path, sound.getnframes() / sound.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise MediaError(f"{path}: not a PCM WAV file ({error}); convert it, or move it out of the folder") from error

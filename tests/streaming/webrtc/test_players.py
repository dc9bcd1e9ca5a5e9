"""WHEP players of others, in Chromium and Firefox, on a page of another site."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

import firefox
import pytest
from aiohttp import web
from other_site import listening
from whep_client import gone

from benchmarks import chromium
from streaming.speech.protocol import SpeechText

PLAYERS = ("@eyevinn/webrtc-player", "whip-whep")
SOURCE = Path(__file__).parent / "players" / "players.js"
MODULES = Path(__file__).parents[3] / "build" / "players" / "node_modules"
PAGE = "<!doctype html><title>Watch</title><video autoplay playsinline></video><script src=players.js></script>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not (MODULES / ".bin" / "esbuild").exists(), reason="no players; run tools/players"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The players as one script."""
    target = tmp_path_factory.mktemp("players") / "players.js"
    command = [MODULES / ".bin" / "esbuild", SOURCE, "--bundle", f"--outfile={target}", "--log-level=warning"]
    subprocess.run(command, check=True, env=os.environ | {"NODE_PATH": str(MODULES)})
    return target.read_text()


@pytest.fixture
def open_in(request):
    """open_in(program, url): the page at `url` in Chromium or Firefox."""

    @contextlib.asynccontextmanager
    async def open_page(program, url):
        if program == "firefox":
            if not firefox.PROGRAM:
                pytest.skip("no firefox on PATH")
            async with firefox.firefox_page(url) as page:
                yield page
        else:
            if not chromium.PROGRAM:
                pytest.skip("no chromium on PATH")
            async with chromium.launch(chromium.SOUND_AT_ONCE) as browser, chromium.open_page(browser, url) as page:
                yield page

    return open_page


@contextlib.asynccontextmanager
async def site(bundle):
    async def page(_):
        return web.Response(text=PAGE, content_type="text/html")

    async def script(_):
        return web.Response(text=bundle, content_type="text/javascript")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/players.js", script)
    async with listening(app) as address:
        yield f"http://{address}"


async def until_loaded(page):
    async with asyncio.timeout(30):
        while not await page.evaluate("Boolean(window.watch)"):
            await asyncio.sleep(0.1)


async def until_seen(page, **least):
    async with asyncio.timeout(90):
        while True:
            seen = await page.evaluate("seen")
            if all(seen.get(name, 0) >= value for name, value in least.items()):
                return seen
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("program", ["chromium", "firefox"])
@pytest.mark.parametrize("player", PLAYERS)
async def test_a_player_of_others_shows_the_moving_picture_plays_the_sound_and_leaves(
    player, program, serving, engine, bundle, open_in
):
    async with site(bundle) as address, serving(cors_origins=(address,)) as client, open_in(program, address) as page:
        await until_loaded(page)
        session = await client.open_session()
        async with client.speech(session) as speech:
            url = f"{client.server.url}{session['whep']}"
            await page.evaluate(
                f"watch['{player}']('{url}', '{session['token']}').then((end) => {{ window.end = end }})"
            )
            await until_seen(page, pictures=10)
            await speech.send(SpeechText("a", "Hello, can you hear what I say while you look at me?"))
            seen = await until_seen(page, pictures=40, changes=5, loudest=0.05)
            avatar = engine.avatars["speaker"]
            assert (seen["width"], seen["height"]) == (avatar.width, avatar.height), seen
            await page.evaluate("Promise.resolve(end()).then(() => null)")
            await gone(client.server)

"""<persona-stream> on pages of other sites: loaded from the server, driven by its methods, observed by its events."""

from __future__ import annotations

import base64
import contextlib

import pytest
from aiohttp import web
from other_site import EXAMPLES, listening

from benchmarks.chromium import PROGRAM, console, open_page, until
from streaming.server.auth import Secrets

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH"),
]

EXAMPLE_SERVER = "http://localhost:8080"
AVATAR = "window.avatar = document.querySelector('persona-stream')"
PAGE = """<!doctype html><title>A page</title>
<script type="module" src="SERVER/persona-stream.js"></script>
<persona-stream avatar="speaker"></persona-stream>
<script type="module">
  window.avatar = document.querySelector("persona-stream");
  window.heard = [];
  for (const name of ["state", "playback-started", "playback-finished", "error"])
    avatar.addEventListener(name, ({ detail }) => heard.push({ event: name, ...detail }));
</script>"""


@contextlib.asynccontextmanager
async def foreign_page(browser, serving, text, *, allowed=True, **settings):
    """A page of another origin than the server's, with `SERVER` in its text replaced."""
    servers = []

    async def show(request):
        return web.Response(text=text.replace("SERVER", servers[0].server.url), content_type="text/html")

    async def open_session(request):
        """What a site's own server does: it has the key, and gives its page a session."""
        return web.json_response(await servers[0].open_session("sesame"))

    app = web.Application()
    app.router.add_get("/", show)
    app.router.add_post("/session", open_session)
    async with listening(app) as address:
        origins = (f"http://{address}",) if allowed else ()
        async with serving(cors_origins=origins, **settings) as client:
            servers.append(client)
            async with open_page(browser, f"http://{address}/") as page:
                yield client, page


async def test_the_example_shows_the_avatar_on_another_site_and_makes_it_speak(serving, browser, engine):
    text = (EXAMPLES / "embed.html").read_text().replace(EXAMPLE_SERVER, "SERVER")
    assert len(text.splitlines()) <= 20
    async with foreign_page(browser, serving, text) as (_, page):
        await until(
            page, f"{AVATAR}; avatar.shadowRoot.querySelector('video').videoWidth > 0 && avatar.state.name === 'live'"
        )
        (session,) = engine.sessions.values()
        assert session.counters.speaking == 0
        await page.evaluate("say.requestSubmit()")
        await until(page, "avatar.speaking")
        assert not await page.evaluate("avatar.muted"), "a gesture that makes it speak lets the sound out"
        await page.evaluate("avatar.remove()")
        await until(page, "avatar.state.name === 'ended'")
        assert not await console(page)


async def test_events_report_the_states_the_playback_and_the_errors(serving, browser):
    async with foreign_page(browser, serving, PAGE) as (client, page):
        await until(page, "window.avatar?.state?.name === 'idle'")
        assert not list(client.server.live_sessions)
        refused = await page.evaluate("avatar.speak('Too early.').catch((error) => error.message)")
        assert refused == "The avatar is not connected."
        await page.evaluate("avatar.connect()")
        await until(page, "avatar.state.name === 'live'")
        assert await page.evaluate("heard.map((event) => event.name).join()") == "connecting,connecting,live"
        await page.evaluate("heard.length = 0")

        text = await page.evaluate("avatar.speak('Yes.')")
        await until(page, "heard.some(({ event }) => event === 'playback-finished')")
        started, finished = await page.evaluate("heard")
        assert started == {"event": "playback-started", "id": text}
        assert finished["id"] == text and not finished["interrupted"] and finished["positionSamples"] > 0

        wave = "Int16Array.from({ length: 8000 }, (_, i) => 8000 * Math.sin(i / 5))"
        floats = "Float32Array.from({ length: 12000 }, (_, i) => 0.3 * Math.sin(i / 5))"
        for samples, rate in ((wave, 16_000), (floats, 24_000)):
            await page.evaluate(f"heard.length = 0; avatar.speak({samples}, {{ sampleRate: {rate} }})")
            await until(page, "heard.some(({ event }) => event === 'playback-finished')")
            assert await page.evaluate("heard.at(-1).positionSamples") == rate // 2

        await page.evaluate("heard.length = 0; avatar.speak(new Float32Array(480000).fill(0.1), { sampleRate: 16000 })")
        await until(page, "avatar.speaking")
        await page.evaluate("avatar.interrupt()")
        await until(page, "heard.at(-1).event === 'playback-finished' && !avatar.busy")
        assert await page.evaluate("heard.at(-1).interrupted")

        await page.evaluate("heard.length = 0; avatar.speak('Who?', { voice: 'nobody' })")
        await until(page, "heard.some(({ event }) => event === 'error')")
        assert await page.evaluate("heard.at(-1).message.includes('nobody')")
        for wrong, why in (("new Int16Array(10)", "sampleRate"), ("new Blob(['no sound'])", "WAV, MP3 or Ogg")):
            assert why in await page.evaluate(f"avatar.speak({wrong}).catch((error) => error.message)")

        await page.evaluate("avatar.disconnect()")
        assert await page.evaluate("[avatar.state.name, avatar.state.reason].join()") == "ended,stopped"


async def test_a_sound_file_is_spoken(serving, browser, speech_wav):
    async with foreign_page(browser, serving, PAGE) as (_, page):
        await until(page, "window.avatar?.state?.name === 'idle'")
        await page.evaluate("avatar.connect()")
        await until(page, "avatar.state.name === 'live'")
        data = base64.b64encode(speech_wav.read_bytes()).decode()
        await page.evaluate(f"fetch('data:audio/wav;base64,{data}').then((r) => r.blob()).then((b) => avatar.speak(b))")
        await until(page, "avatar.speaking")


async def test_a_site_that_has_the_key_gives_its_page_sessions(serving, browser, engine):
    """The key never reaches the page: each conversation gets a session and its token from the site's own server."""
    ask = "avatar.session = () => fetch('/session', { method: 'POST' }).then((reply) => reply.json())"
    keys = Secrets(keys=("sesame",))
    async with foreign_page(browser, serving, PAGE, secrets=keys) as (_, page):
        await until(page, "window.avatar?.state?.name === 'idle'")
        await page.evaluate("avatar.connect()")
        await until(page, "avatar.state.name === 'ended' && avatar.state.reason === 'unauthorized'")
        await page.evaluate(f"{ask}; avatar.connect()")
        await until(page, "avatar.state.name === 'live'")
        await page.evaluate("avatar.disconnect(); avatar.connect()")
        await until(page, "avatar.state.name === 'live'")


async def test_a_refused_site_is_told_the_setting_that_admits_it(serving, browser):
    async with foreign_page(browser, serving, PAGE, allowed=False) as (_, page):
        await until(page, "window.avatar?.state?.name === 'idle'")
        await page.evaluate("avatar.connect()")
        await until(page, "avatar.state.name === 'waiting'")
        text = await page.evaluate("avatar.state.text")
        assert "--cors-origins" in text and await page.evaluate("location.origin") in text

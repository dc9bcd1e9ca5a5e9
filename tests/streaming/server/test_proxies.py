"""Behind nginx and Caddy, as docs/operations.md configures them: at a path of its own, for connections that are long
silent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest
from speaking import tone
from whep_client import bearer, frames, viewer

from benchmarks.chromium import console, open_page, until
from streaming.config import TimeoutConfig
from streaming.speech.protocol import Encoding, Finished, SpeechAudio, SpeechEnd, SpeechStart

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def documented(name: str) -> str:
    """The block of docs/operations.md in the proxy's language."""
    match = re.search(rf"^```{name}\n(.*?)^```", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    assert match
    return match[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def running(command, port):
    process = subprocess.Popen(command)
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                await asyncio.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def nginx(folder, port, upstream):
    """nginx with the documented block; its time-outs, 60 s by default, are one second."""
    block = documented("nginx").replace("127.0.0.1:8080", upstream)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; proxy_read_timeout 1s; proxy_send_timeout 1s; client_body_temp_path {folder};\n"
        f"proxy_temp_path {folder}; server {{ listen 127.0.0.1:{port};\n{block} }} }}\n"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def caddy(folder, port, upstream):
    block = documented("caddy").replace("127.0.0.1:8080", upstream).replace("avatar.example", f"http://:{port}")
    (folder / "Caddyfile").write_text("{\n admin off\n auto_https off\n}\n" + block)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.mark.parametrize("proxy", [nginx, caddy])
async def test_everything_works_below_a_path_through_a_proxy_with_its_default_settings(serving, tmp_path, proxy):
    name = proxy.__name__
    if not shutil.which(name):
        pytest.skip(f"needs {name}: apt-get install {name}")
    port = free_port()
    base = f"http://127.0.0.1:{port}/avatar"
    timeouts = TimeoutConfig(ping_s=0.25, event_keepalive_s=0.25)
    async with serving(proxies=1, timeouts=timeouts) as client:
        upstream = client.server.url.removeprefix("http://")
        async with (
            running(proxy(tmp_path, port, upstream), port),
            aiohttp.ClientSession() as http,
            asyncio.timeout(60),
        ):
            async with http.get(f"{base}/") as page:
                assert page.status == 200 and "persona-stream" in await page.text()
            async with http.post(f"{base}/v1/sessions", json={"avatar": "speaker"}) as reply:
                session = await reply.json()
                assert reply.status == 201 and session["whep"].startswith("/avatar/v1/")
            async with http.get(f"{base}/v1/avatars") as reply:
                (found,) = (await reply.json())["avatars"]
            async with http.get(f"http://127.0.0.1:{port}{found['thumbnail']}") as reply:
                assert reply.content_type == "image/jpeg"
            client.http = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
            async with client.http, client.http.get(session["events"], headers=bearer(session)) as events:
                assert await events.content.readline() == b"event: viewers\n"  # at once: not buffered
                async with client.speech(session, Encoding.JSON) as speech, viewer(client, session) as whep:
                    await frames(whep.tracks["video"], 2)
                    await asyncio.sleep(3)  # thrice the time-out: nothing is said
                    await speech.send(SpeechStart("a", 8_000))
                    await speech.send(SpeechAudio("a", tone(0.2, 8_000)))
                    await speech.send(SpeechEnd("a"))
                    assert await speech.receive_until(Finished) == Finished("a", 1_600, False)
                    assert whep.location.startswith("/avatar/") and await whep.leave() == 200
                assert not events.content.at_eof()


async def test_the_page_comes_alive_and_speaks_below_a_path_in_a_browser(serving, browser, engine, tmp_path):
    if not shutil.which("nginx"):
        pytest.skip("needs nginx: apt-get install nginx")
    port = free_port()
    base = f"http://127.0.0.1:{port}/avatar/"
    async with serving(proxies=1) as client:
        upstream = client.server.url.removeprefix("http://")
        async with running(nginx(tmp_path, port, upstream), port), open_page(browser, base) as page:
            video = "document.querySelector('persona-stream').shadowRoot.querySelector('video')"
            await until(page, f"document.querySelector('#state').textContent === 'Live' && {video}.videoWidth > 0")
            await page.fill("#text", "Hello.")
            await page.evaluate("document.querySelector('#say').requestSubmit()")
            (session,) = engine.sessions.values()
            async with asyncio.timeout(60):
                while not session.counters.speaking:
                    await asyncio.sleep(0.05)
            asked = await page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
            assert asked and all(address.startswith(base) for address in asked), asked
            assert not await console(page)

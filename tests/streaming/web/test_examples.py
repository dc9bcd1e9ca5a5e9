"""The examples run as they stand, against a real server."""

from __future__ import annotations

import asyncio
import os
import sys
import wave

import pytest
from aiohttp import web
from other_site import EXAMPLES, listening

from benchmarks.chromium import PROGRAM, console, open_page

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(*command: str) -> str:
    """The output of an example, which has to exit with 0."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.slow
async def test_the_bridge_forwards_the_sound_of_a_websocket_tts(serving):
    requests = []

    async def tts(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        requests.append(await socket.receive_json())
        for _ in range(10):
            await socket.send_bytes(bytes(range(200)) * 12)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/tts", tts)
    async with serving() as client, listening(app) as address:
        text = "What the avatar says."
        output = await run(
            sys.executable, "examples/tts_bridge.py", f"ws://{address}/tts", text, client.server.url.rstrip("/")
        )
        assert requests == [{"text": text}]
        assert '"playback.started"' in output and '"position_samples": 12000, "interrupted": false' in output
    assert len((EXAMPLES / "tts_bridge.py").read_text().splitlines()) <= 50


@pytest.mark.slow
async def test_a_wav_file_is_pushed_and_its_events_are_shown(serving, speech_wav, tmp_path):
    short = tmp_path / "short.wav"
    with wave.open(str(speech_wav)) as whole, wave.open(str(short), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(whole.getframerate()))
    async with serving() as client:
        output = await run(sys.executable, "examples/push_wav.py", str(short), client.server.url)
    assert "Started(id='utterance 1'" in output and "interrupted=False" in output and "25 frames of speech" in output


@pytest.mark.slow
async def test_the_walk_through_prints_what_it_promises(serving):
    async with serving() as client:
        output = await run("examples/walk.sh", client.server.url)
    assert "avatar speaker; voices: ['en-us'" in output and '"sessions": 1' in output
    assert '"code": "unknown-avatar"' in output and output.rstrip().endswith("closed; asking again: 410")


@pytest.mark.browser
@pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")
async def test_the_page_shows_the_avatar_and_makes_it_speak(serving, engine, browser):
    app = web.Application()
    app.router.add_static("/", EXAMPLES)
    async with (
        listening(app) as address,
        serving(cors_origins=(f"http://{address}",)) as client,
        open_page(browser, f"http://{address}/page.html?server={client.server.url}") as page,
    ):
        async with asyncio.timeout(120):
            while not await page.evaluate("window.avatar?.videoWidth > 0 && avatar.currentTime > 0.5"):
                await asyncio.sleep(0.2)
            (session,) = engine.sessions.values()
            assert session.counters.speaking == 0
            await page.evaluate("say.requestSubmit()")
            while session.counters.speaking < 10:
                await asyncio.sleep(0.2)
        assert not await console(page)

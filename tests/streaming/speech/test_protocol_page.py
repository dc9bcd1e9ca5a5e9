"""The programs in docs/protocol.md run unchanged, and its tables name every message and field."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import sys
import wave
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from streaming.speech.protocol import CLIENT_TYPES, SERVER_TYPES
from streaming.speech.realtime import SPEECH_TYPES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "protocol.md").read_text()


def program(containing: str) -> str:
    """The one Python block with that text."""
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if containing in block]
    return source


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
async def test_the_speech_program_plays_a_file(serving, speech_wav, tmp_path):
    short = tmp_path / "short.wav"
    with wave.open(str(speech_wav)) as whole, wave.open(str(short), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(24_000))
    async with serving() as client:
        source = program("speech.audio").replace("http://localhost:8080", client.server.url)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", source, str(short)),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(120):
            output = (await child.communicate())[0].decode()
    assert child.returncode == 0, output
    assert "'type': 'playback.finished'" in output and "'position_samples': 24000" in output


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
async def test_the_forwarder_joins_a_model_and_the_avatar(serving):
    truncated = asyncio.get_running_loop().create_future()

    async def model(request):  # speaks ten seconds, and is interrupted by its user
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        event = {"item_id": "item", "content_index": 0, "delta": "AAAA" * 8_000}
        for _ in range(20):
            await socket.send_json({"type": "response.output_audio.delta", **event})
        await asyncio.sleep(1.5)
        await socket.send_json({"type": "input_audio_buffer.speech_started"})
        truncated.set_result(await socket.receive_json())
        return socket

    app = web.Application()
    app.router.add_get("/", model)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    names = {"asyncio": asyncio}
    exec(compile(program("async def forward"), "protocol.md", "exec"), names)
    try:
        async with (
            serving() as client,
            client.speech(await client.open_session()) as speech,
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/") as socket,
            asyncio.timeout(60),
        ):
            forwarding = asyncio.create_task(names["forward"](socket, speech.socket))
            event = await truncated
            forwarding.cancel()
    finally:
        await runner.cleanup()
    assert event["type"] == "conversation.item.truncate" and event["item_id"] == "item"
    assert 0 < event["audio_end_ms"] < 10_000


def test_every_program_is_python():
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        ast.parse(block)
    for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL):
        json.loads(block)


@pytest.mark.parametrize(("name", "kind"), [*CLIENT_TYPES.items(), *SERVER_TYPES.items()])
def test_every_message_and_field_is_in_a_table(name, kind):
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line]
    assert rows, name
    assert all(any(f"`{field}`" in row for row in rows) for field in kind.__struct_fields__), name


@pytest.mark.parametrize("name", SPEECH_TYPES)
def test_every_realtime_event_is_in_the_table(name):
    assert any(line.startswith("|") and f"`{name}`" in line for line in PAGE.splitlines())

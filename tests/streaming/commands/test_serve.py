"""The command line, and the command `personastream serve`: its output and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import aiohttp
import pytest
from publishing import free_port

from engine.errors import AvatarFileError
from streaming.__main__ import main
from streaming.commands.serve import Serve, avatars_by_name
from streaming.config import ServerConfig

ROOT = Path(__file__).parents[3]


def run(capsys, *arguments):
    """The exit code of a command in this process, its output and its error output."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


def test_help_lists_the_commands(capsys):
    code, output, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in output for name in ("serve", "demo", "mic", "dub", "bench", "doctor", "export"))


def test_a_missing_file_prints_one_line_and_exits_with_2(tmp_path, capsys):
    code, _, errors = run(capsys, "serve", str(tmp_path / "nobody.avatar"), "--port", "0")
    assert code == 2
    (line,) = errors.splitlines()
    assert "nobody.avatar" in line


def test_no_avatar_at_all_says_how_to_make_one(capsys):
    code, _, errors = run(capsys, "serve")
    assert code == 2 and "precompute SPEAKER.mp4" in errors


def test_two_avatars_of_the_same_name_are_refused():
    with pytest.raises(AvatarFileError, match="same name"):
        avatars_by_name((Path("a/anna.avatar"), Path("b/anna.avatar")))


@pytest.mark.slow
def test_the_process_serves_and_a_signal_ends_it_with_0(avatar_path):
    command = [sys.executable, "-m", "streaming", "serve", str(avatar_path), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            url = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}readyz", timeout=60) as reply:
                assert reply.status == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
        errors = server.stderr.read()
    assert "server.drain within_s=20 sessions=0" in errors and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_the_start(avatar_path, number):
    """The process is stopped as soon as it works on its networks, before it listens."""
    command = [sys.executable, "-m", "streaming", "serve", str(avatar_path), "--port", "0"]
    begins = "import logging, os, signal; from engine.avatar.avatar import Avatar; opens = Avatar.open\n"
    begins += f"Avatar.open = lambda *a, **k: (os.kill(os.getpid(), {number}), opens(*a, **k))[1]\n"
    command[1:3] = ["-c", f"{begins}from streaming.__main__ import main; main()"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130
    assert "server.stop before it was started" in ended.stderr
    assert "Traceback" not in ended.stderr and "serves" not in ended.stdout


@contextlib.asynccontextmanager
async def served(avatar, **settings):
    """The command in a task of this process: the task, and an HTTP client of its server."""
    server = ServerConfig(port=free_port(), **settings)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(Serve(avatars=(avatar,), server=server).serve())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
            async with asyncio.timeout(60):
                while await status(http, "/readyz") != 200:
                    await asyncio.sleep(0.1)
            yield serving, http
        serving.cancel()


async def status(http, path):
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with http.get(path) as reply:
            return reply.status
    return None


@contextlib.asynccontextmanager
async def endless_speech(http):
    """A speech socket with an utterance that the server has read and that never ends."""
    async with http.post("/v1/sessions", json={"avatar": "speaker"}) as reply:
        session = await reply.json()
    async with http.ws_connect(session["speech"], params={"token": session["token"]}) as socket:
        await socket.send_json({"type": "speech.start", "id": "endless", "sample_rate": 16000})
        await socket.send_json({"type": "speech.end", "id": "never begun"})
        while (await socket.receive_json(timeout=60))["type"] != "error":  # the start before it has been read then
            pass
        yield socket


@pytest.mark.slow
async def test_the_first_signal_drains_and_the_second_ends_at_once(avatar_path, unfrozen):
    async with served(avatar_path, drain_s=600.0) as (serving, http), endless_speech(http) as socket:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(60):
            while await status(http, "/readyz") != 503:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert not serving.done(), "an utterance is still open"
        os.kill(os.getpid(), signal.SIGINT)
        while (message := await socket.receive(timeout=60)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert (message.data, message.extra) == (1001, "draining: the server shuts down")
        async with asyncio.timeout(60):
            await serving


@pytest.fixture
def unfrozen():
    """Undo the command's gc.freeze()."""
    yield
    import gc

    gc.unfreeze()

"""The command `personastream` as a process: what it says and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "streaming"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_commands():
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("serve", "dub", "bench", "doctor", "export"))


def test_a_file_that_is_missing_is_one_line_and_exit_code_2(tmp_path):
    done = run("serve", str(tmp_path / "nobody.avatar"), "--port", "0")
    assert done.returncode == 2
    assert "nobody.avatar" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_avatar_at_all_says_how_to_make_one():
    done = run("serve")
    assert done.returncode == 2
    assert "precompute SPEAKER.mp4" in done.stderr


def test_a_port_in_use_is_one_line_and_exit_code_2(avatar_path):
    with subprocess.Popen(
        [*COMMAND, "serve", str(avatar_path), "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            url = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}readyz", timeout=60) as reply:
                assert reply.status == 200
            port = url.rstrip("/").rpartition(":")[2]
            done = run("serve", str(avatar_path), "--port", port)
            assert done.returncode == 2
            assert f"port {port}" in done.stderr and "--port" in done.stderr
            assert "Traceback" not in done.stderr
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def test_listening_beyond_this_machine_wants_a_key_or_a_word(avatar_path):
    done = run("serve", str(avatar_path), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    said = done.stderr.replace("\n", " ")
    assert "no key is set" in said and "PERSONASTREAM_API_KEY" in said and "--open" in said
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def served(avatar, *arguments):
    command = [*COMMAND, "serve", str(avatar), "--port", "0", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            yield server, server.stdout.readline().split()[-1].rstrip("/")
        finally:
            server.kill()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


async def speak_endlessly(url):
    """Begins an utterance that is never ended; then waits for the server to close the socket: its code and reason."""
    session = post(f"{url}/v1/sessions", {"avatar": "speaker"})
    async with (
        aiohttp.ClientSession(url) as http,
        http.ws_connect(session["speech"], params={"token": session["token"]}) as socket,
    ):
        await socket.send_json({"type": "speech.start", "id": "endless", "sample_rate": 16000})
        await socket.send_json({"type": "speech.end", "id": "never begun"})
        while (await socket.receive_json(timeout=60))["type"] != "error":  # then the start before it was read
            pass
        yield None
        while (message := await socket.receive(timeout=60)).type is aiohttp.WSMsgType.TEXT:
            pass
        yield message.data, message.extra


def test_the_first_signal_drains_and_the_second_ends_at_once(avatar_path):
    async def main(server, url):
        async with contextlib.aclosing(speak_endlessly(url)) as speaking:
            await anext(speaking)
            server.send_signal(signal.SIGTERM)
            async with aiohttp.ClientSession() as http, asyncio.timeout(60):
                while (await http.get(f"{url}/readyz")).status != 503:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            assert server.poll() is None, "something is still being said"
            server.send_signal(signal.SIGTERM)
            assert await anext(speaking) == (1001, "draining: the server shuts down")

    with served(avatar_path, "--drain-s", "600") as (server, url):
        asyncio.run(main(server, url))
        assert server.wait(timeout=60) == 0
        errors = server.stderr.read()
        assert "server.drain within_s=600 sessions=1" in errors and "Traceback" not in errors


def test_draining_ends_by_itself(avatar_path):
    async def main(server, url):
        async with contextlib.aclosing(speak_endlessly(url)) as speaking:
            await anext(speaking)
            server.send_signal(signal.SIGTERM)
            assert (await anext(speaking))[0] == 1001

    with served(avatar_path, "--drain-s", "1") as (server, url):
        asyncio.run(main(server, url))
        assert server.wait(timeout=60) == 0

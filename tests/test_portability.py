"""The main paths need nothing that only Linux has: they run in processes that lack it, as Windows does."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
import wave
from pathlib import Path

import av
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# After the libraries, whose Linux wheels may use it, and before anything of ours. asyncio's method stays and refuses.
WITHOUT_LINUX = """
import asyncio, os, select, signal, socket, sys
import aiohttp.web, aiortc, av, cv2, numba, rich.progress, torch._dynamo, tyro
import transformers.models.hubert.modeling_hubert
sys.modules["fcntl"] = sys.modules["resource"] = None
del select.epoll
for name in ("sched_getaffinity", "getuid", "O_NOFOLLOW"):
    delattr(os, name)
for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU", "SIGKILL"):
    delattr(signal, name)
for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
    delattr(socket, name)
def refuse(self, *_):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse
import precompute.dubbing.job
from {module} import main
sys.exit(main(sys.argv[1:]))
"""


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", WITHOUT_LINUX.replace("{module}", module), *map(str, arguments)]


def test_an_avatar_is_dubbed(avatar_path, speech_wav, tmp_path):
    second, clip = tmp_path / "second.wav", tmp_path / "out.mp4"
    with wave.open(str(speech_wav)) as source, wave.open(str(second), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getframerate()))
    done = subprocess.run(
        command("streaming.__main__", "dub", avatar_path, second, "-o", clip),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with av.open(str(clip)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 25
    assert {path.name for path in tmp_path.iterdir()} == {"second.wav", "out.mp4"}


def test_the_server_starts_answers_and_drains(avatar_path):
    pipe = subprocess.PIPE
    arguments = command("streaming.__main__", "serve", avatar_path, "--port", "0")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            url = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url}healthz") as answer:
                assert answer.status == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
        assert "server.drain" in server.stderr.read()


def test_the_programs_of_enrolment_start():
    done = subprocess.run(
        command("precompute.__main__", "--help"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--quality" in done.stdout, done.stderr

"""The command `personastream` as a process: what it says and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "streaming"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_commands():
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("serve", "dub", "bench", "doctor"))


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
            with urllib.request.urlopen(f"{url}readyz", timeout=10) as reply:
                assert reply.status == 200
            port = url.rstrip("/").rpartition(":")[2]
            done = run("serve", str(avatar_path), "--port", port)
            assert done.returncode == 2
            assert f"port {port}" in done.stderr and "--port" in done.stderr
            assert "Traceback" not in done.stderr
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=15) == 0

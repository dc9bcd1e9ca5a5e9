"""The contract tests of the agent frameworks, each in its own environment, against a real server."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("framework", ["livekit", "pipecat"])
async def test_the_avatar_keeps_the_contract(serving, framework):
    python = ROOT / "build" / "agents" / framework / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment with {framework}; run `tools/agents`")
    async with serving() as client:
        child = await asyncio.create_subprocess_exec(
            *(str(python), "-m", "pytest", "-q", "-x", "--confcutdir=tests/agents", "-p", "no:cacheprovider"),
            *("-W", "default"),  # the frameworks' own warnings are not ours
            f"tests/agents/test_{framework}.py",
            cwd=ROOT,
            env={**os.environ, "PERSONASTREAM_URL": client.server.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    assert b"passed" in output and b"skipped" not in output, output.decode()

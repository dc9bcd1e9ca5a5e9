"""A server that does not come up is reported with its last lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import ServerEndError, serving


@pytest.mark.slow
async def test_a_server_that_ends_before_it_listens_is_reported_with_its_last_lines():
    with pytest.raises(ServerEndError, match=r"(?s)exit code 2; expected it to listen .* no such file"):
        async with serving(Path("none.avatar")):
            pytest.fail("it listens")


async def test_a_server_that_does_not_listen_in_time_is_ended_and_reported():
    with pytest.raises(ServerEndError, match=r"expected it to listen within 0.05 s"):
        async with serving(Path("none.avatar"), start_timeout_s=0.05):  # importing torch alone takes longer
            pytest.fail("it listens")

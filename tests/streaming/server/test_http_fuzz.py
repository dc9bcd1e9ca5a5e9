"""Requests that clients write wrong: answered with 4xx, and no fault of the server is logged."""

from __future__ import annotations

import asyncio
import gzip
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio(loop_scope="session")

REQUESTS = 250
GOOD = gzip.compress(b'{"avatar": "nobody"}')
ODD_HOSTS = [b"[", b"a:b", b"localhost:99999", b"\xff", b"http://x", b"localhost:-1", b"xn--a", b"%zz", b"::1", b""]


async def ask(server, request: bytes) -> int:
    """The status of the answer to these bytes; 0 if the server closed the connection without one."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(30):
            line = await reader.readline()
        return int(line.split()[1]) if line else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/sessions") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"POST %s HTTP/1.1" % path, b"Host: localhost", length, *headers, b"", body])


@pytest.fixture
def faults(caplog):
    """The records of faults since the start of the test."""
    with caplog.at_level(logging.WARNING):
        yield lambda: [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "headers_and_body",
    [
        ([b"Content-Encoding: gzip"], b"hello"),
        ([b"Content-Encoding: deflate"], b"hello"),
        ([b"Content-Encoding: br"], b"hello"),
        ([b"Content-Encoding: zstd"], b"hello"),
        ([b"Content-Encoding: gzip"], GOOD[:12]),
        ([b"Content-Encoding: gzip"], gzip.compress(bytes(3_000_000))),
        ([b"Transfer-Encoding: chunked"], b"zz\r\nhello\r\n0\r\n\r\n"),
        ([b"Expect: nonsense"], b"{}"),
        ([b"Content-Type: \xff/;;="], b"{"),
        ([], b"[" * 100_000),
        ([], b"\xff\xfe"),
        ([b"Origin: http://\xff"], b"{}"),
        ([b"Authorization: Bearer \xff"], b"{}"),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say_is_the_clients_fault(serving, faults, headers_and_body):
    headers, body = headers_and_body
    async with serving() as client:
        assert 400 <= await ask(client.server, post(body, *headers)) < 500
        assert not faults()


async def test_a_body_in_the_encoding_that_is_named_is_read(serving):
    async with serving() as client:
        assert await ask(client.server, post(GOOD, b"Content-Encoding: gzip")) == 404  # no avatar of that name


@pytest.mark.parametrize("host", ODD_HOSTS)
async def test_a_host_that_is_no_name_is_the_clients_fault(serving, faults, host):
    async with serving() as client:
        assert 400 <= await ask(client.server, b"GET /v1/avatars HTTP/1.1\r\nHost: " + host + b"\r\n\r\n") < 500
        assert not faults()


PATHS = st.sampled_from(
    [
        *(
            b"/",
            b"/v1/sessions",
            b"/v1/avatars",
            b"/v1/avatars/%ff/thumbnail.jpg",
            b"/v1/samples/%00.wav",
            b"/capacity",
        ),
        *(b"/metrics", b"/v1/realtime", b"/..%2f..%2fetc/passwd", b"//", b"/client.js", b"*"),
        *(
            b"/v1/sessions/SESSION" + rest
            for rest in (b"/whep", b"/offer", b"/speech", b"/events", b"/whep/x", b"/token")
        ),
    ]
)
WORDS = st.binary(max_size=30).map(lambda word: word.replace(b"\r", b"").replace(b"\n", b""))
NAMES = st.sampled_from(
    [
        *(
            b"Authorization",
            b"Origin",
            b"Accept",
            b"Content-Type",
            b"Content-Encoding",
            b"If-Match",
            b"Range",
            b"Cookie",
        ),
        *(b"X-Forwarded-For", b"X-Forwarded-Prefix", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version"),
        *(b"Access-Control-Request-Method", b"If-Modified-Since", b"If-None-Match", b"Connection"),
    ]
)
VALUES = WORDS | st.sampled_from(
    [b"websocket", b"gzip", b"Bearer ", b"bytes=9-1", b"*", b'W/"', b"http://[", b"application/sdp"]
)


@st.composite
def requests(draw):
    method = draw(st.sampled_from([b"GET", b"POST", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD", b"PUT", b"TRACE"]))
    query = draw(st.sampled_from([b"", b"?token=%ed%a0%80", b"?token=TOKEN", b"?%zz=&&=;", b"?token=TOKEN&token=x"]))
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    body = draw(st.binary(max_size=60) | st.sampled_from([b"{}", b'{"avatar": 7}', b"v=0\r\nm=video 9 x 96"]))
    host = draw(st.sampled_from([b"localhost"] * 6 + ODD_HOSTS))
    lines = [method + b" " + draw(PATHS) + query + b" HTTP/1.1", b"Host: " + host, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in headers), b"", body])


@pytest.mark.slow
async def test_no_request_is_a_fault_of_the_server(serving, faults):
    examples = []

    @settings(
        max_examples=REQUESTS, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(requests())
    def collect(example):
        examples.append(example)

    collect()
    async with serving(proxies=1) as client:
        session = await client.open_session()
        for example in examples:
            request = example.replace(b"SESSION", session["id"].encode()).replace(b"TOKEN", session["token"].encode())
            assert await ask(client.server, request) < 500, request
        assert not faults()

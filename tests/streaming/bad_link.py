"""A network path that loses and delays: a UDP relay between the two ends of a WebRTC connection.

What `tc netem` does in the kernel, for machines whose kernel has none or whose tests may not configure it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket

CANDIDATE = re.compile(r"a=candidate:\S+ 1 udp \S+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", re.IGNORECASE)
DATAGRAM_BYTES = 65_536


class BadLink:
    """A context that, put into an answer, stands between the two ends.

    `loss` is the part of the datagrams that vanish; the others need `delay_s`, give or take up to `jitter_s` each, so
    that they overtake each other. While `up` is False nothing passes.
    """

    def __init__(self, *, loss: float = 0.0, delay_s: float = 0.0, jitter_s: float = 0.0):
        self.loss, self.delay_s, self.jitter_s = loss, delay_s, jitter_s
        self.up = True
        self.lost = 0
        self._random = random.Random(0)
        self._sockets = contextlib.ExitStack()
        self._onward = {}  # by address of the offering end: a socket of its own towards the answering one

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._sockets.close()

    def hide(self, offer):
        """The offer with an address that leads nowhere, so that no path goes past us."""
        return re.sub(r"(a=candidate:\S+ \d udp \S+) \S+ \d+", r"\1 192.0.2.1 9", offer, flags=re.IGNORECASE)

    def put_into(self, answer):
        """The answer with our address in the place of its first candidate, and without the others."""
        found = CANDIDATE.search(answer)
        host, port = found[1], int(found[2])

        def take(data, address):
            if address not in self._onward:
                self._onward[address] = self._open(host, lambda reply, _: self._carry(reply, near, address))
            self._carry(data, self._onward[address], (host, port))

        near = self._open(host, take)
        ours = found[0].replace(f"{host} {port}", f"{host} {near.getsockname()[1]}")
        return re.sub(r"a=candidate:.*\r\n", "", answer.replace(found[0], "a=ours", 1)).replace("a=ours", ours)

    def _open(self, host, take):
        opened = self._sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened.setblocking(False)
        opened.bind((host, 0))
        loop = asyncio.get_running_loop()
        loop.add_reader(opened, lambda: take(*opened.recvfrom(DATAGRAM_BYTES)))
        self._sockets.callback(loop.remove_reader, opened)
        return opened

    def _carry(self, data, onward, address):
        """Send the datagram on, later or never."""
        if not self.up or self._random.random() < self.loss:
            self.lost += 1
            return
        wait_s = max(0.0, self.delay_s + self._random.uniform(-self.jitter_s, self.jitter_s))
        asyncio.get_running_loop().call_later(wait_s, self._send, data, onward, address)

    def _send(self, data, onward, address):
        if onward.fileno() >= 0:  # the link may be gone by then
            onward.sendto(data, address)

"""A TCP session with a packet for each tick, whose loss would be noticed."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import final

from .namespace import PATIENCE

INTERVAL = 0.001
"""Seconds between two packets."""

_TCP_INFO = 11
_TOTAL_RETRANS = 100
"""Place of tcpi_total_retrans, 4 bytes, in struct tcp_info."""


@final
class Traffic:
    """The packets of a client to a server, each with its number; they begin at once.

    Args:
        listener: where the client has connected; it is closed.
        client: the client's socket; it is closed by `stop`.
    """

    def __init__(self, listener: socket.socket, client: socket.socket) -> None:
        self.sent = 0
        self.got: list[int] = []
        self.retransmitted = 0
        """Packets that TCP had to send once more; known after `stop`."""
        self._stop = threading.Event()
        self._client = client
        with listener:
            self._server, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.settimeout(PATIENCE)
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        due = time.monotonic()
        with self._client:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                self._client.sendall(self.sent.to_bytes(8, "big"))
                self.sent += 1
                due += INTERVAL
            info = self._client.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TOTAL_RETRANS + 4)
            (self.retransmitted,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)

    def _receive(self) -> None:
        with self._server, self._server.makefile("rb") as stream:
            while data := stream.read(8):
                self.got.append(int.from_bytes(data, "big"))

    def stop(self) -> None:
        """End the session; then `got` is complete. May be called twice."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

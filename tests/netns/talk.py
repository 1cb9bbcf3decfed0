"""A connection that is to outlive what happens to addresses."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from lab import Namespace


class Talk:
    """A TCP connection between two hosts, both ends ours."""

    def __init__(
        self, server: Namespace, to: IPv4Address, client: Namespace, source: IPv4Address
    ) -> None:
        with server.call(socket.socket) as listener:
            listener.bind((str(to), 0))
            listener.listen()
            self._ends = [client.call(socket.socket)]
            self._ends[0].settimeout(60)
            self._ends[0].bind((str(source), 0))
            self._ends[0].connect(listener.getsockname())
            self._ends.append(listener.accept()[0])
            self._ends[1].settimeout(60)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exc: object) -> None:
        for end in self._ends:
            end.close()

    def alive(self) -> None:
        """Something goes there and something comes back."""
        for one, other in (self._ends, self._ends[::-1]):
            one.sendall(b"x")
            assert other.recv(1) == b"x"

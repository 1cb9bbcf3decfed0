"""A connection that is to outlive what happens to addresses."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from lab import Namespace


class Talk:
    """A TCP connection between two hosts; `ends` are the client's socket and the server's."""

    def __init__(
        self, server: Namespace, to: IPv4Address, client: Namespace, source: IPv4Address
    ) -> None:
        with server.call(socket.socket) as listener:
            listener.bind((str(to), 0))
            listener.listen()
            self.ends = [client.call(socket.socket)]
            self.ends[0].settimeout(60)
            self.ends[0].bind((str(source), 0))
            self.ends[0].connect(listener.getsockname())
            self.ends.append(listener.accept()[0])
            self.ends[1].settimeout(60)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exc: object) -> None:
        for end in self.ends:
            end.close()

    def alive(self) -> None:
        """Something goes there and something comes back."""
        for one, other in (self.ends, self.ends[::-1]):
            one.sendall(b"x")
            assert other.recv(1) == b"x"

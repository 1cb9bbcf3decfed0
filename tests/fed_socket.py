"""A netlink socket that first gives what a test feeds it: the kernel's mistakes are hard to have when wanted."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

KERNEL = (0, 0)


class FedSocket:
    """Reads what it was fed, then what `real` has; all else is done by `real`.

    Args:
        fed: what each read gives: a datagram, a whole result of recvmsg(), or an error to raise.
    """

    def __init__(self, real: socket.socket, fed: Sequence[Any]) -> None:
        self.real = real
        self.fed = list(fed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def recvmsg(self, size: int) -> Any:
        if not self.fed:
            return self.real.recvmsg(size)
        item = self.fed.pop(0)
        if isinstance(item, Exception):
            raise item
        return (item, [], 0, KERNEL) if isinstance(item, bytes) else item


def feed(opened: Any, *fed: Any) -> None:
    """Has an autoip.kernel.netlink.Socket read this first."""
    opened._socket = FedSocket(opened._socket, fed)


def message(
    kind: int, body: bytes, *, flags: int = 0, sequence: int = 0, length: int | None = None
) -> bytes:
    """One netlink message, padded; `length`: what its header says instead of the truth."""
    size = 16 + len(body) if length is None else length
    return struct.pack("=IHHII", size, kind, flags, sequence, 0) + body + bytes(-len(body) % 4)

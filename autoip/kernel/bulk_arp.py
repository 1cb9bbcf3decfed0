"""The sockets of a scan on one interface; in the C helper many ARP frames go by one system call."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from autoip.kernel.native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from array import array
    from collections.abc import Sequence

PORTS_MAX: int = lib.AUTOIP_PORTS_MAX
"""Ports that `open_datagrams` takes, at most."""

_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_ALL_NODES = "ff02::1"
_HEARD = struct.Struct("@QIIH6s6s2x")
READ_MAX = 256
"""Packets that `BulkArp.receive` returns, at most."""


class BulkArp:
    """A packet socket for the ARP of one interface, which receives what all other hosts send.

    Args:
        index: the interface's index, from 1.
        mac: its hardware address, 6 bytes.

    Raises:
        OSError: EPERM without CAP_NET_RAW, ENODEV.
    """

    def __init__(self, index: int, mac: bytes) -> None:
        if len(mac) != 6:
            raise ValueError(f"mac: 6 bytes, not {len(mac)}")
        if ffi.sizeof("struct autoip_heard") != _HEARD.size:
            raise ImportError("autoip.kernel._native does not belong to this version of autoip")
        self._mac = mac
        self._socket = socket.socket(fileno=check(lib.autoip_bulk_open(index, _ARP, ffi.NULL, 0)))
        self._heard = ffi.new("struct autoip_heard[]", READ_MAX)
        self._buffer = ffi.buffer(self._heard)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, sender: int, targets: array[int]) -> int:
        """Ask for these addresses, without a wait.

        Args:
            sender: our address. Never 0: that would be a probe, and a host that probes the same address
                would give it up (RFC 3927 section 2.2.1).
            targets: addresses, an array of type `I`.

        Returns:
            How many of them the kernel took, from the first on.

        Raises:
            OSError: it took none: EAGAIN, ENOBUFS, ENETDOWN, ENXIO.
        """
        if not 0 < sender < 1 << 32:
            raise ValueError(f"sender: {sender}")
        if targets.typecode != "I":
            raise TypeError("targets: an array of type I")
        head = b"\xff" * 6 + self._mac, 0x0806, 1, 0x0800, 6, 4, 1, self._mac, sender
        request = struct.pack("!12sHHHBBH6sI10x", *head)
        wanted = ffi.from_buffer("uint32_t[]", targets)
        return check(lib.autoip_bulk_send(self.fileno(), request, wanted, len(targets)))

    def receive(self) -> list[tuple[int, int, int, int, bytes, bytes]]:
        """Read the ARP packets that wait.

        Returns:
            Of each, CLOCK_REALTIME in nanoseconds, SPA, TPA, operation, SHA and THA.

        Raises:
            OSError: ENETDOWN.
        """
        count = check(lib.autoip_bulk_receive(self.fileno(), self._heard, READ_MAX))
        return list(_HEARD.iter_unpack(self._buffer[: count * _HEARD.size]))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def open_datagrams(index: int, ports: Sequence[int]) -> socket.socket:
    """Open a packet socket for the UDP over IPv4 that other hosts send on an interface to one of these ports.

    What comes are whole frames, whatever address or group they are for, also while the interface has no address.

    Raises:
        OSError: EPERM without CAP_NET_RAW, ENODEV.
    """
    if not 0 < len(ports) <= PORTS_MAX:
        raise ValueError(f"{len(ports)} ports")
    wanted = ffi.new("uint16_t[]", list(ports))
    return socket.socket(fileno=check(lib.autoip_bulk_open(index, _IPV4, wanted, len(ports))))


def open_echo_replies(index: int) -> socket.socket:
    """Open a packet socket for the echo replies of ICMPv6 that other hosts send on an interface, as whole frames.

    Raises:
        OSError: EPERM without CAP_NET_RAW, ENODEV.
    """
    return socket.socket(fileno=check(lib.autoip_bulk_open(index, _IPV6, ffi.NULL, 0)))


def ask_all_nodes(index: int, message: bytes) -> None:
    """Send a message of ICMPv6 to all hosts of a link; nothing where the interface has no IPv6."""
    with (
        suppress(OSError),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender,
    ):
        sender.sendto(message, (_ALL_NODES, 0, 0, index))

"""A packet socket for the ARP of one link, to learn who is there; only while several links lead to 169.254/16.

It also receives the ARP requests that this host itself sends: so it shows at once that the kernel looks for an
address on this link, where netlink reports after 3 s that nobody has answered.

The kernel's filter drops what teaches nothing: other protocols, other networks, and each neighbour that is
known already, as address and hardware address. For each of these the filter has one comparison with a digest, since
net.core.optmem_max bounds its length. The numbers that make the digest are random: nobody can have another host's
frames dropped on purpose.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import final

from autoip.core.arp import ETHERTYPE_ARP, FRAME, ArpPacket, parse
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel.netlink_filter import attach

READ_MAX = 128
"""Frames that are read at once."""
KNOWN_MAX = 440
"""Pairs of address and hardware address in the filter, at most: 20 KB have room for two such filters, and the kernel
counts the former one until it is replaced."""

# include/uapi/linux/if_ether.h, if_packet.h
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_MULTICAST, _PACKET_OUTGOING = 2, 4
# include/uapi/linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LENGTH = 0x20, 0x28, 0x80
_MULTIPLY, _ADD_X, _XOR_X, _AND, _MOVE_A_TO_X = 0x24, 0x0C, 0xAC, 0x54, 0x07
_JUMP, _IF_EQUAL, _IF_GREATER, _IF_NOT_LESS, _IF_EQUAL_X = 0x05, 0x15, 0x25, 0x35, 0x1D
_END = 0x06
_DIRECTION, _VLAN_TAG = ((-0x1000 + about) & 0xFFFFFFFF for about in (4, 48))
# Where a frame has what.
_TYPE, _TYPES, _OPERATION, _SHA, _SPA, _TPA = 12, 14, 18, 22, 28, 38
_ETHERNET_AND_IPV4, _REQUEST, _REPLY = 0x00010800, 0x06040001, 0x06040002

_LINK_LOCAL = int(LINK_LOCAL_NETWORK.network_address) >> 16
_GROUP = 200
"""So many comparisons share one end: a conditional jump reaches 255 instructions."""

_Instruction = tuple[int, int, int, int]
_DROP: _Instruction = (_END, 0, 0, 0)
_ACCEPT: _Instruction = (_END, 0, 0, FRAME.size)


def _must(code: int, constant: int) -> list[_Instruction]:
    """Drop the frame unless the comparison holds."""
    return [(code, 1, 0, constant), _DROP]


def _must_not(code: int, constant: int) -> list[_Instruction]:
    return [(code, 0, 1, constant), _DROP]


def _none_of(values: Iterable[int]) -> list[_Instruction]:
    """Drop the frame if A is one of the values."""
    wanted = sorted(values)
    program: list[_Instruction] = []
    for start in range(0, len(wanted), _GROUP):
        group = wanted[start : start + _GROUP]
        program += [
            (_IF_EQUAL, len(group) - at, 0, value) for at, value in enumerate(group)
        ]  # to the end of the group
        program += [(_JUMP, 0, 0, 1), _DROP]
    return program


class _Digest:
    """31 bits of address and hardware address."""

    def __init__(self) -> None:
        self._factors = [secrets.randbits(31) | 1 for _ in range(3)]

    def of(self, address: IPv4Address, mac: bytes) -> int:
        first, second, third = self._factors
        high, low = int.from_bytes(mac[:4], "big"), int.from_bytes(mac[4:], "big")
        value = (int(address) & 0xFFFF) * first & 0xFFFFFFFF
        value = (value ^ high) * second & 0xFFFFFFFF
        return (value + low) * third & 0x7FFFFFFF

    @property
    def program(self) -> list[_Instruction]:
        """A <- the digest of the sender."""
        first, second, third = self._factors
        return [
            (_LOAD_HALF, 0, 0, _SPA + 2),
            (_MULTIPLY, 0, 0, first),
            (_MOVE_A_TO_X, 0, 0, 0),
            (_LOAD_WORD, 0, 0, _SHA),
            (_XOR_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, second),
            (_MOVE_A_TO_X, 0, 0, 0),
            (_LOAD_HALF, 0, 0, _SHA + 4),
            (_ADD_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, third),
            (_AND, 0, 0, 0x7FFFFFFF),
        ]


def assemble(mac: bytes, known: Iterable[tuple[IPv4Address, bytes]], digest: _Digest) -> bytes:
    """Return the filter: struct sock_filter for each instruction.

    Args:
        mac: of the interface.
        known: neighbours of which nothing more is to be learned.
        digest: of this socket.
    """
    known = [*known][:KNOWN_MAX]
    high, low = struct.unpack("!IH", mac)
    begin = [
        (_LOAD_HALF, 0, 0, _TYPE),
        *_must(_IF_EQUAL, ETHERTYPE_ARP),
        (_LENGTH, 0, 0, 0),
        *_must(_IF_NOT_LESS, FRAME.size),
        (_LOAD_WORD, 0, 0, _VLAN_TAG),
        *_must(_IF_EQUAL, 0),
        (_LOAD_WORD, 0, 0, _TYPES),
        *_must(_IF_EQUAL, _ETHERNET_AND_IPV4),
        (_LOAD_WORD, 0, 0, _OPERATION),
        (_IF_EQUAL, 2, 0, _REQUEST),
        *_must(_IF_EQUAL, _REPLY),
        (_LOAD_WORD, 0, 0, _DIRECTION),
    ]
    # What comes: from a link-local address, and not from this interface.
    coming = [
        *_must_not(_IF_GREATER, _PACKET_MULTICAST),
        (_LOAD_HALF, 0, 0, _SPA),
        *_must(_IF_EQUAL, _LINK_LOCAL),
        (_LOAD_WORD, 0, 0, _SHA),
        (_IF_EQUAL, 0, 3, high),
        (_LOAD_HALF, 0, 0, _SHA + 4),
        *_must_not(_IF_EQUAL, low),
        *digest.program,
        *_none_of({digest.of(address, mac) for address, mac in known}),
        _ACCEPT,
    ]
    # What leaves: a question for a link-local address, not a probe or an announcement.
    leaving = [
        (_LOAD_WORD, 0, 0, _OPERATION),
        *_must(_IF_EQUAL, _REQUEST),
        (_LOAD_HALF, 0, 0, _TPA),
        *_must(_IF_EQUAL, _LINK_LOCAL),
        (_LOAD_WORD, 0, 0, _SPA),
        *_must_not(_IF_EQUAL, 0),
        (_MOVE_A_TO_X, 0, 0, 0),
        (_LOAD_WORD, 0, 0, _TPA),
        *_must_not(_IF_EQUAL_X, 0),
        (_LOAD_HALF, 0, 0, _TPA + 2),
        *_none_of({int(address) & 0xFFFF for address, _ in known}),
        _ACCEPT,
    ]
    outgoing = [(_IF_EQUAL, 0, 1, _PACKET_OUTGOING), (_JUMP, 0, 0, len(coming))]
    program = [*begin, *outgoing, *coming, *leaving]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@final
class NeighbourSocket:
    """The socket of one link.

    Args:
        index: number of the interface.
        mac: its hardware address, 6 bytes.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, index: int, mac: bytes) -> None:
        self._mac = mac
        self._digest = _Digest()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        try:
            self.ignore(())  # before it is bound, and so receives anything
            self._socket.bind((socket.if_indextoname(index), _ETH_P_ALL))
        except UnicodeError as problem:
            self._socket.close()
            raise OSError(errno.EINVAL, "a name that is not UTF-8") from problem
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def ignore(self, known: Iterable[tuple[IPv4Address, bytes]]) -> None:
        """Drop, from now on, what comes from these neighbours, and questions for them. Raises OSError."""
        attach(self._socket, assemble(self._mac, known, self._digest))

    def read(self) -> list[ArpPacket]:
        """Return what waits, READ_MAX at most. Raises OSError: the interface is down or gone."""
        found = []
        for _ in range(READ_MAX):
            try:
                packet = parse(self._socket.recv(FRAME.size))
            except BlockingIOError:
                break
            if packet is not None:
                found.append(packet)
        return found

    def dropped(self) -> int:
        """Return how many frames found no room since the last call."""
        answer = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", answer)[1])

    def send(self, frame: bytes) -> None:
        """Send a frame. Raises OSError."""
        self._socket.send(frame)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

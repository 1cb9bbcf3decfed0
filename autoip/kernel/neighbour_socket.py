"""A packet socket for the ARP of one link, to learn who is there; only while several links lead to 169.254/16.

It also receives the ARP requests that this host itself sends: so it shows at once that the kernel looks for an
address on this link, where netlink reports after 3 s that nobody has answered. And it receives IPv4 datagrams to all: a
device may answer a question of mDNS so before it sends any ARP.

The kernel's filter drops what teaches nothing: other packets, other networks, and each neighbour that is
known already, as address and hardware address. For each of these the filter has one comparison with a digest, since
net.core.optmem_max bounds its length. The numbers that make the digest are random: nobody can have another host's
frames dropped on purpose.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import final

from autoip.core.arp import (
    ETHERTYPE_ARP,
    FRAME,
    NO_ADDRESS,
    NO_HARDWARE,
    ArpPacket,
    Operation,
    parse,
)
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel.netlink_filter import attach

READ_MAX = 128
"""Frames that are read at once."""
KNOWN_MAX = 400
"""Pairs of address and hardware address in the filter, at most: 20 KB have room for two such filters, and the kernel
counts the former one until it is replaced."""

# include/uapi/linux/if_ether.h, if_packet.h
_ETH_P_ALL, _ETHERTYPE_IPV4 = 0x0003, 0x0800
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_BROADCAST, _PACKET_MULTICAST, _PACKET_OUTGOING = 1, 2, 4
# include/uapi/linux/filter.h
_LOAD_WORD, _LOAD_HALF, _LENGTH = 0x20, 0x28, 0x80
_MULTIPLY, _ADD_X, _XOR_X, _AND, _MOVE_A_TO_X = 0x24, 0x0C, 0xAC, 0x54, 0x07
_JUMP, _IF_EQUAL, _IF_GREATER, _IF_NOT_LESS, _IF_EQUAL_X = 0x05, 0x15, 0x25, 0x35, 0x1D
_END = 0x06
_DIRECTION, _VLAN_TAG = ((-0x1000 + about) & 0xFFFFFFFF for about in (4, 48))
# Where a frame has what.
_SOURCE, _TYPE, _TYPES, _OPERATION, _SHA, _SPA, _TPA = 6, 12, 14, 18, 22, 28, 38
_IP_SOURCE = 26
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
        self._factors: list[int] = [one | 1 for one in struct.unpack("=3I", os.urandom(12))]

    def of(self, address: IPv4Address, mac: bytes) -> int:
        first, second, third = self._factors
        high, low = int.from_bytes(mac[:4], "big"), int.from_bytes(mac[4:], "big")
        value = (int(address) & 0xFFFF) * first & 0xFFFFFFFF
        value = (value ^ high) * second & 0xFFFFFFFF
        return (value + low) * third & 0x7FFFFFFF

    def program(self, address: int, mac: int) -> list[_Instruction]:
        """A <- the digest of the sender, whose addresses are at these places."""
        first, second, third = self._factors
        return [
            (_LOAD_HALF, 0, 0, address + 2),
            (_MULTIPLY, 0, 0, first),
            (_MOVE_A_TO_X, 0, 0, 0),
            (_LOAD_WORD, 0, 0, mac),
            (_XOR_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, second),
            (_MOVE_A_TO_X, 0, 0, 0),
            (_LOAD_HALF, 0, 0, mac + 4),
            (_ADD_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, third),
            (_AND, 0, 0, 0x7FFFFFFF),
        ]


def _from_neighbour(address: int, mac: int, own: bytes, digest: _Digest) -> list[_Instruction]:
    """Drop the frame if its sender is not a link-local neighbour. A <- the sender's digest.

    Before: A = the frame's direction.

    Args:
        address: where the frame has that of its sender.
        mac: where it has the sender's hardware address.
        own: the interface's hardware address.
        digest: of this socket.
    """
    high, low = struct.unpack("!IH", own)
    return [
        *_must_not(_IF_GREATER, _PACKET_MULTICAST),
        (_LOAD_HALF, 0, 0, address),
        *_must(_IF_EQUAL, _LINK_LOCAL),
        (_LOAD_WORD, 0, 0, mac),
        (_IF_EQUAL, 0, 3, high),
        (_LOAD_HALF, 0, 0, mac + 4),
        *_must_not(_IF_EQUAL, low),
        *digest.program(address, mac),
    ]


_QUESTION = [
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
]
"""Drop the packet if it is not a question for a link-local address: a probe or an announcement. A <- half of that."""


def assemble(mac: bytes, known: Iterable[tuple[IPv4Address, bytes]], digest: _Digest) -> bytes:
    """Return the filter: struct sock_filter for each instruction.

    Args:
        mac: of the interface.
        known: neighbours of which nothing more is to be learned.
        digest: of this socket.
    """
    known = [*known][:KNOWN_MAX]
    begin = [
        (_LENGTH, 0, 0, 0),
        *_must(_IF_NOT_LESS, FRAME.size),
        (_LOAD_WORD, 0, 0, _VLAN_TAG),
        *_must(_IF_EQUAL, 0),
        (_LOAD_HALF, 0, 0, _TYPE),
    ]
    datagram = [
        *_must(_IF_EQUAL, _ETHERTYPE_IPV4),
        (_LOAD_WORD, 0, 0, _DIRECTION),
        *_must(_IF_NOT_LESS, _PACKET_BROADCAST),
        *_from_neighbour(_IP_SOURCE, _SOURCE, mac, digest),
    ]
    packet = [
        (_LOAD_WORD, 0, 0, _TYPES),
        *_must(_IF_EQUAL, _ETHERNET_AND_IPV4),
        (_LOAD_WORD, 0, 0, _OPERATION),
        (_IF_EQUAL, 2, 0, _REQUEST),
        *_must(_IF_EQUAL, _REPLY),
        (_LOAD_WORD, 0, 0, _DIRECTION),
    ]
    coming = _from_neighbour(_SPA, _SHA, mac, digest)
    not_known = [*_none_of({digest.of(*one) for one in known}), _ACCEPT]
    leaving = [*_QUESTION, *_none_of({int(address) & 0xFFFF for address, _ in known}), _ACCEPT]
    packet += [(_IF_EQUAL, 0, 1, _PACKET_OUTGOING), (_JUMP, 0, 0, len(coming) + len(not_known))]
    datagram.append((_JUMP, 0, 0, len(packet) + len(coming)))
    begin += [(_IF_EQUAL, 0, 1, ETHERTYPE_ARP), (_JUMP, 0, 0, len(datagram))]
    program = [*begin, *datagram, *packet, *coming, *not_known, *leaving]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _heard(frame: bytes) -> ArpPacket | None:
    """Return what a frame shows of its sender; a datagram to all shows as much as an ARP reply to nobody."""
    if len(frame) < FRAME.size or int.from_bytes(frame[_TYPE:_TYPES], "big") != _ETHERTYPE_IPV4:
        return parse(frame)
    mac, source = frame[_SOURCE:_TYPE], IPv4Address(frame[_IP_SOURCE : _IP_SOURCE + 4])
    return ArpPacket(Operation.REPLY, mac, source, NO_HARDWARE, NO_ADDRESS)


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
                packet = _heard(self._socket.recv(FRAME.size))
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

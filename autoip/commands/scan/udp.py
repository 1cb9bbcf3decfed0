"""A datagram of UDP over IPv4 in an Ethernet frame, as a value."""

from __future__ import annotations

import struct
from collections import namedtuple

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBHII")
_UDP = struct.Struct("!HHHH")
_TYPE = 0x0800
_PROTOCOL = 17

Datagram = namedtuple("Datagram", "mac source destination source_port port payload")
"""MAC of the sender, both addresses as numbers, both ports, and the bytes."""


def emit(datagram: Datagram, ttl: int) -> bytes:
    """Return the frame, for a multicast group or for everybody."""
    mac, source, destination, source_port, port, payload = datagram
    to = b"\xff" * 6
    if destination >> 28 == 14:  # a group: RFC 1112 section 6.4
        to = b"\x01\x00\x5e" + (destination & 0x7FFFFF).to_bytes(3, "big")
    length = _UDP.size + len(payload)
    # RFC 768: a checksum of 0 means none; what a link damages its own checksum finds.
    udp = _UDP.pack(source_port, port, length, 0) + payload
    fields = [0x45, 0, 20 + length, 0, 0x4000, ttl, _PROTOCOL, 0, source, destination]
    total = sum(struct.unpack("!10H", _IPV4.pack(*fields)))
    total = (total & 0xFFFF) + (total >> 16)
    fields[7] = ~(total + (total >> 16)) & 0xFFFF
    return b"".join((_ETHERNET.pack(to, mac, _TYPE), _IPV4.pack(*fields), udp))


def parse(frame: bytes) -> Datagram | None:
    """Return the datagram of a frame; None if it is not one. Of one in pieces, the first piece."""
    if len(frame) < _ETHERNET.size + _IPV4.size:
        return None
    _, mac, kind = _ETHERNET.unpack_from(frame)
    fields = _IPV4.unpack_from(frame, _ETHERNET.size)
    header = (fields[0] & 15) * 4
    at = _ETHERNET.size + header
    end = min(len(frame), _ETHERNET.size + fields[2])
    if kind != _TYPE or fields[0] >> 4 != 4 or header < 20 or fields[6] != _PROTOCOL:
        return None
    if fields[4] & 0x1FFF or end < at + _UDP.size:
        return None
    source_port, port, length, _ = _UDP.unpack_from(frame, at)
    payload = frame[at + _UDP.size : min(end, at + length)]
    return Datagram(mac, fields[8], fields[9], source_port, port, payload)

"""ICMPv6 (RFC 4443): all hosts with IPv6 are asked for an echo. Their answers have a MAC, and no IPv4 address."""

from __future__ import annotations

import struct

_ETHERNET = struct.Struct("!6x6sH")
_IPV6 = struct.Struct("!B3xHBx16s16x")
"""Version, length, next header, source."""
_TYPE = 0x86DD
_ICMPV6 = 58
_REQUEST, _REPLY = 128, 129
_SIZE = 8


def question() -> bytes:
    """Return an Echo Request, whose checksum is the kernel's work."""
    return struct.pack("!BBHHH", _REQUEST, 0, 0, 1, 1)


def answer(frame: bytes) -> tuple[bytes, bytes] | None:
    """Read the frame of an Echo Reply: the MAC and the IPv6 address of its sender; None: it is something else."""
    if len(frame) < _ETHERNET.size + _IPV6.size + _SIZE:
        return None
    mac, kind = _ETHERNET.unpack_from(frame)
    version, length, header, source = _IPV6.unpack_from(frame, _ETHERNET.size)
    if (kind, version >> 4, header) != (_TYPE, 6, _ICMPV6) or length < _SIZE:
        return None
    return (mac, source) if frame[_ETHERNET.size + _IPV6.size] == _REPLY else None

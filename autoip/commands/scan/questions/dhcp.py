"""DHCP (RFC 2131), which a scan only hears: a host without an address that asks for one."""

from __future__ import annotations

import struct

from autoip.commands.scan.questions import Answer

_HEADER = struct.Struct("!BBB9xI12x6s202x4s")
"""op, htype, hlen, ciaddr, chaddr, the magic cookie."""
_COOKIE = b"\x63\x82\x53\x63"
_PAD, _END = 0, 255
_NAME, _TYPE, _VENDOR_CLASS = 12, 53, 60
_TYPES = {
    1: "asks for a lease",
    3: "asks for a lease",
    7: "releases its lease",
    8: "asks DHCP for options",
}
_REQUEST, _SERVER_TYPES = 1, (2, 5, 6)


def answer(payload: bytes) -> Answer | None:
    """Read what a client or a server sends; of a client, its MAC and its address if it has one."""
    if len(payload) < _HEADER.size:
        return None
    op, hardware, length, address, mac, cookie = _HEADER.unpack_from(payload)
    if cookie != _COOKIE or (hardware, length) != (1, 6):
        return None
    options = _options(payload[_HEADER.size :])
    kind = options.get(_TYPE, b"\0")[0]
    if op != _REQUEST:
        return Answer((), ("DHCP server",)) if kind in _SERVER_TYPES else None
    name, maker = (
        options.get(key, b"").decode("utf-8", "replace") for key in (_NAME, _VENDOR_CLASS)
    )
    kinds = tuple(filter(None, (_TYPES.get(kind), maker)))
    return Answer((name,) if name else (), kinds, address or None, mac)


def _options(data: bytes) -> dict[int, bytes]:
    """Return the options with a value (RFC 2132); of one that is there twice, the last."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if value := data[at + 2 : at + 2 + data[at + 1]]:
            found[data[at]] = value
        at += 2 + data[at + 1]
    return found

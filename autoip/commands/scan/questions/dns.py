"""Messages of DNS (RFC 1035), as multicast DNS and LLMNR have them: bounded, whatever the bytes are."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterable

A, PTR, SRV = 1, 12, 33
_INTERNET = 1
UNICAST = 0x8000
"""The bit of a question's class that wants the answer sent to the asker alone (RFC 6762 section 5.4)."""
ADDRESSES = ".in-addr.arpa"
"""How the names of IPv4 addresses end."""
_RESPONSE = 0x8000
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_RECORDS_MAX = 128
_NAME_MAX = 255


def reversed_name(address: int) -> str:
    """Return the name at which the name of an IPv4 address is."""
    return ".".join(str(octet) for octet in reversed(address.to_bytes(4, "big"))) + ADDRESSES


def questions(names: Iterable[str], how: int) -> bytes:
    """Return a message that asks for the PTR records of these names; `how`: UNICAST, or 0."""
    asked = [
        b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        + struct.pack("!BHH", 0, PTR, _INTERNET | how)
        for name in names
    ]
    return _HEADER.pack(0, 0, len(asked), 0, 0, 0) + b"".join(asked)


def records(message: bytes) -> list[tuple[str, int, str]]:
    """Return the owner, type and data of a response's records A, PTR and SRV; data: the name that they have.

    What follows something that cannot be read is left out, as is all of a message that is not a response.
    """
    found: list[tuple[str, int, str]] = []
    try:
        _, flags, asked, *counts = _HEADER.unpack_from(message)
        if not flags & _RESPONSE:
            return found
        at = _HEADER.size
        for _ in range(min(asked, _RECORDS_MAX)):
            at = _name(message, at)[1] + 4
        for _ in range(min(sum(counts), _RECORDS_MAX)):
            owner, at = _name(message, at)
            kind, _, _, length = _RECORD.unpack_from(message, at)
            at += _RECORD.size
            if kind in (PTR, SRV):
                found.append((owner, kind, _name(message, at + (6 if kind == SRV else 0))[0]))
            elif kind == A:
                found.append((owner, kind, ""))
            at += length
    except (struct.error, IndexError, ValueError):
        pass
    return found


def _name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at a place, and the place behind it.

    Raises:
        ValueError, IndexError: it is not a name, is too long, or points forward (a loop needs that).
    """
    labels: list[str] = []
    size, end, before = 0, None, at
    while length := message[at]:
        if length >= 0xC0:
            end = at + 2 if end is None else end
            at = (length & 0x3F) << 8 | message[at + 1]
            if at >= before:
                raise ValueError("a pointer that does not point back")
            before = at
            continue
        label = message[at + 1 : at + 1 + length]
        size += length + 1
        if length > 63 or len(label) < length or size > _NAME_MAX:
            raise ValueError("not a name")
        labels.append(label.decode("utf-8", "replace"))
        at += length + 1
    return ".".join(labels), at + 1 if end is None else end

"""GigE Vision's control protocol: a camera answers the discovery from any subnet, by broadcast if that is allowed."""

from __future__ import annotations

import struct

from autoip.commands.scan.questions import EVERYBODY, Answer

PORT, GROUP, TTL = 3956, EVERYBODY, 64

_KEY = 0x42
_ACKNOWLEDGE, _BY_BROADCAST = 0x01, 0x10
_DISCOVERY, _ACK = 2, 3
_ID = 1
_HEADER = struct.Struct("!HHHH")
_DEVICE = struct.Struct("!10x6s20xI12xI16x32s32s32s48s16s16s")
"""Bootstrap registers from 0 on: MAC, address, mask, manufacturer, model, version, information, serial number, name."""


def question() -> bytes:
    """Return DISCOVERY_CMD."""
    return struct.pack("!BBHHH", _KEY, _ACKNOWLEDGE | _BY_BROADCAST, _DISCOVERY, 0, _ID)


def answer(payload: bytes) -> Answer | None:
    """Read DISCOVERY_ACK."""
    if len(payload) < _HEADER.size + _DEVICE.size:
        return None
    status, kind, _, number = _HEADER.unpack_from(payload)
    if (status, kind, number) != (0, _ACK, _ID):
        return None
    mac, address, mask, *texts = _DEVICE.unpack_from(payload, _HEADER.size)
    maker, model, _, _, serial, name = (
        text.split(b"\0", 1)[0].decode("utf-8", "replace").strip() for text in texts
    )
    kinds = ["GigE Vision", " ".join(filter(None, (maker, model))), serial and f"serial {serial}"]
    return Answer((name,) if name else (), tuple(filter(None, kinds)), address, mac, mask)

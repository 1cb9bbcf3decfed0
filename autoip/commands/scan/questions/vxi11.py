"""VXI-11, by which LXI instruments are found: ONC RPC's port mapper (RFC 1833) is asked for the VXI-11 core channel."""

from __future__ import annotations

import struct

from autoip.commands.scan.questions import EVERYBODY, Answer

PORT, GROUP, TTL = 111, EVERYBODY, 64

_ID = 0x6175746F
_CALL, _REPLY = 0, 1
_PORT_MAPPER, _GET_PORT = 100000, 3
_CORE_CHANNEL = 0x0607AF
_TCP = 6


def question() -> bytes:
    """Return a call of PMAPPROC_GETPORT."""
    call = (_ID, _CALL, 2, _PORT_MAPPER, 2, _GET_PORT, 0, 0, 0, 0)
    return struct.pack("!14I", *call, _CORE_CHANNEL, 1, _TCP, 0)


def answer(payload: bytes) -> Answer | None:
    """Read the reply: port 0 means that the host has a port mapper and is not an instrument."""
    if len(payload) != 28:
        return None
    number, kind, *status, port = struct.unpack("!7I", payload)
    if (number, kind) != (_ID, _REPLY) or any(status):
        return None
    return Answer((), ("VXI-11",) if port else ())

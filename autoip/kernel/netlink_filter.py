"""Classic packet filters on netlink sockets: the kernel drops what a socket need not see, and wakes nobody."""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Iterable

# include/uapi/linux/filter.h: loads, a jump, an end; and where the loads read an attribute's place
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_WORD_AT_X, _LOAD_HALF_AT_X = 0x40, 0x48
_TO_A, _TO_X, _MOVE_A_TO_X, _JUMP_IF_EQUAL, _END = 0x00, 0x01, 0x07, 0x15, 0x06
_FIND_ATTRIBUTE = (-0x1000 + 12) & 0xFFFFFFFF
_ACCEPT, _DROP = 0xFFFFFFFF, 0

_TYPE, _BODY = 4, 16
"""Where a message has its type, and where the header is over."""

Check = tuple[list[tuple[int, int]], int]
"""Instructions (code, constant) that load a value, and the value that it must have."""


def native(format_: str, value: int) -> int:
    """Return how a load, which takes the most significant byte first, sees a number in the host's order."""
    return int.from_bytes(struct.pack("=" + format_, value), "big")


def of_type(kind: int) -> Check:
    """Check the message's type."""
    return [(_LOAD_HALF, _TYPE)], native("H", kind)


def byte(offset: int, value: int) -> Check:
    """Check a byte of the message's own."""
    return [(_LOAD_BYTE, _BODY + offset)], value


def half(offset: int, value: int) -> Check:
    """Check two bytes of the message's own."""
    return [(_LOAD_HALF, _BODY + offset)], native("H", value)


def word(offset: int, value: int) -> Check:
    """Check four bytes of the message's own."""
    return [(_LOAD_WORD, _BODY + offset)], native("I", value)


def attribute(header: int, number: int, value: int) -> Check:
    """Check the four bytes of an attribute, after `header` bytes of the message's own."""
    return _attribute(header, number, _LOAD_WORD_AT_X), value


def attribute_begins(header: int, number: int, value: int) -> Check:
    """Check the first two bytes of an attribute."""
    return _attribute(header, number, _LOAD_HALF_AT_X), value


def _attribute(header: int, number: int, load: int) -> list[tuple[int, int]]:
    return [
        (_TO_A, _BODY + header),
        (_TO_X, number),
        (_LOAD_WORD, _FIND_ATTRIBUTE),
        (_MOVE_A_TO_X, 0),  # 0, the message's length, if there is none
        (load, 4),
    ]


def assemble(rules: Iterable[list[Check]]) -> bytes:
    """Return the filter that lets a message through if all checks of one of the rules hold."""
    program: list[tuple[int, int, int, int]] = []
    for rule in rules:
        length = sum(len(load) + 1 for load, _ in rule)
        end = len(program) + length + 1  # where the next rule begins
        for load, value in rule:
            program += [(code, 0, 0, constant) for code, constant in load]
            program.append((_JUMP_IF_EQUAL, 0, end - len(program) - 1, value))
        program.append((_END, 0, 0, _ACCEPT))
    program.append((_END, 0, 0, _DROP))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def attach(sock: socket.socket, program: bytes) -> None:
    """Attach a packet filter (struct sock_filter for each instruction) to a socket of any family. Raises OSError."""
    instructions = array("B", program)
    address, length = instructions.buffer_info()
    so_attach_filter = 26
    sock.setsockopt(socket.SOL_SOCKET, so_attach_filter, struct.pack("@HP", length // 8, address))

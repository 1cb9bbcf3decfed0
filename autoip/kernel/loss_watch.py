"""Watch what belongs to our addresses: the rule, the source route, the connected route, the filter.

One netlink socket, in the groups of rules, routes and traffic control. A classic packet filter on it drops, in the
kernel, everything but the removal of such a thing: changes of others do not wake the process, however many there are.
"""

from __future__ import annotations

import errno
import socket
import struct
from array import array
from typing import Any, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.arp_broadcast import CLSACT_HANDLE, EGRESS, HANDLE, HANDLE_WITH_HOOK
from autoip.kernel.model import PROTOCOL
from autoip.kernel.source_routing import RULE_PRIORITY, TABLE_BASE

GROUPS = rtnetlink.RTMGRP_TC | rtnetlink.RTMGRP_IPV4_ROUTE | rtnetlink.RTMGRP_IPV4_RULE

# include/uapi/linux/filter.h: loads, a jump, an end; and where the loads read an attribute's place
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_WORD_AT_X = 0x20, 0x28, 0x30, 0x40
_TO_A, _TO_X, _MOVE_A_TO_X, _JUMP_IF_EQUAL, _END = 0x00, 0x01, 0x07, 0x15, 0x06
_FIND_ATTRIBUTE = (-0x1000 + 12) & 0xFFFFFFFF
_ACCEPT, _DROP = 0xFFFFFFFF, 0

_TYPE, _BODY = 4, 16
"""Where a message has its type, and where the header is over."""
_RTA_DST, _FRA_PRIORITY = 1, 6

Check = tuple[list[tuple[int, int]], int]
"""Instructions (code, constant) that load a value, and the value that it must have."""


def _native(format_: str, value: int) -> int:
    """Return how a load, which takes the most significant byte first, sees a number in the host's order."""
    return int.from_bytes(struct.pack("=" + format_, value), "big")


def _type(kind: int) -> Check:
    return [(_LOAD_HALF, _TYPE)], _native("H", kind)


def _byte(offset: int, value: int) -> Check:
    return [(_LOAD_BYTE, _BODY + offset)], value


def _word(offset: int, value: int) -> Check:
    return [(_LOAD_WORD, _BODY + offset)], _native("I", value)


def _attribute(header: int, number: int, value: int) -> Check:
    """Check the four bytes of an attribute, after `header` bytes of the message's own."""
    find = [
        (_TO_A, _BODY + header),
        (_TO_X, number),
        (_LOAD_WORD, _FIND_ATTRIBUTE),
        (_MOVE_A_TO_X, 0),  # 0, the message's length, if there is none
        (_LOAD_WORD_AT_X, 4),
    ]
    return find, value


# Struct fib_rule_hdr and rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type (bytes), flags. Struct
# tcmsg: family (padded), ifindex, handle, parent, info (words).
_RULE_GONE = [
    _type(rtnetlink.RTM_DELRULE),
    _byte(2, 32),
    _attribute(12, _FRA_PRIORITY, _native("I", RULE_PRIORITY)),
]
_ROUTE_GONE = [_type(rtnetlink.RTM_DELROUTE), _byte(5, PROTOCOL)]
_CONNECTED_ROUTE_GONE = [
    _type(rtnetlink.RTM_DELROUTE),
    _byte(5, rtnetlink.RTPROT_KERNEL),
    _byte(1, LINK_LOCAL_NETWORK.prefixlen),
    _attribute(12, _RTA_DST, int(LINK_LOCAL_NETWORK.network_address)),
]
_CLSACT_GONE = [_type(rtnetlink.RTM_DELQDISC), _word(8, CLSACT_HANDLE)]
# Where all filters of a priority, or all of a qdisc, are removed at once, the handle is 0.
_FILTERS_GONE = [
    [_type(rtnetlink.RTM_DELTFILTER), _word(12, EGRESS), _word(8, handle)]
    for handle in (0, HANDLE, HANDLE_WITH_HOOK)
]


def assemble() -> bytes:
    """Return the packet filter: struct sock_filter for each instruction."""
    program: list[tuple[int, int, int, int]] = []
    for rule in (_RULE_GONE, _ROUTE_GONE, _CONNECTED_ROUTE_GONE, _CLSACT_GONE, *_FILTERS_GONE):
        length = sum(len(load) + 1 for load, _ in rule)
        end = len(program) + length + 1  # where the next rule begins
        for load, value in rule:
            program += [(code, 0, 0, constant) for code, constant in load]
            program.append((_JUMP_IF_EQUAL, 0, end - len(program) - 1, value))
        program.append((_END, 0, 0, _ACCEPT))
    program.append((_END, 0, 0, _DROP))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def attach(sock: socket.socket, program: bytes) -> None:
    """Attach a packet filter to a socket. Raises OSError."""
    instructions = array("B", program)
    address, length = instructions.buffer_info()
    so_attach_filter = 26
    sock.setsockopt(socket.SOL_SOCKET, so_attach_filter, struct.pack("@HP", length // 8, address))


@final
class LossWatch:
    """The socket. Closed until `open`.

    Raises:
        KernelRefused: from `open`.
    """

    def __init__(self) -> None:
        self._socket: netlink.Socket | None = None

    def open(self) -> None:
        """Watch from now on."""
        program = assemble()
        self._socket = netlink.Socket(
            rtnetlink.ROUTE, GROUPS, lambda opened: attach(opened, program)
        )

    def close(self) -> None:
        """Close the socket. Harmless when repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def next(self) -> set[int] | None:
        """Wait for removals; return the indexes of their interfaces; None: of any, since messages were lost.

        Raises:
            OSError: EBADF when the socket is closed.
        """
        while (opened := self._socket) is not None:
            try:
                messages = await opened.news()
            except OSError as problem:
                if problem.errno == errno.EBADF:
                    raise
                return None
            if found := {index for index in map(_index, messages) if index is not None}:
                return found
        raise OSError(errno.EBADF, "the socket is closed")


def _index(message: Any) -> int | None:
    """Return the interface of a removed thing."""
    kind = message["header"]["type"]
    if kind == rtnetlink.RTM_DELRULE:
        table: int = message.get_attr("FRA_TABLE") or 0
        return table - TABLE_BASE if table > TABLE_BASE else None
    if kind == rtnetlink.RTM_DELROUTE:
        index: int | None = message.get_attr("RTA_OIF")
        return index
    return int(message["index"])

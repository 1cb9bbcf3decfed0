"""TCP connections of one local address: find and reset them (netlink sock_diag).

The kernel selects the few sockets that matter. Each call opens a socket of its own, so that other
requests never wait for a long list.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from ipaddress import IPv4Address

from autoip.errors import KernelRefused
from autoip.kernel import netlink
from autoip.kernel.netlink import Request, nlmsg

# include/uapi/linux/netlink.h
NETLINK_SOCK_DIAG = 4
# include/uapi/linux/sock_diag.h and inet_diag.h
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
INET_DIAG_BC_S_COND = 7
# include/net/tcp_states.h
TCP_ESTABLISHED, TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN, TCP_NEW_SYN_RECV = 1, 6, 7, 10, 12
STATES = range(TCP_ESTABLISHED, TCP_NEW_SYN_RECV + 1)

CONNECTED = sum(
    1 << state for state in STATES if state not in (TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN)
)
"""The states in which there is a peer that a reset can concern.

In TIME_WAIT the connection has ended on both sides.
"""

CONNECTIONS_MAX = 65536
"""Connections that one call looks at, at most."""

_IDENTITY = struct.Struct("=2s2s16s16sI8s")  # struct inet_diag_sockid
_MAPPED = bytes(10) + b"\xff\xff"
_NOT_THERE = (errno.ENOENT, errno.ESTALE)


class _Question(nlmsg):  # type: ignore[misc]
    """struct inet_diag_req_v2."""

    fields = (
        ("family", "B"),
        ("protocol", "B"),
        ("extensions", "B"),
        ("__pad", "x"),
        ("states", "I"),
        ("identity", "48s"),
    )
    nla_map = ((1, "INET_DIAG_REQ_BYTECODE", "cdata"),)


class _Entry(nlmsg):  # type: ignore[misc]
    """The first fields of struct inet_diag_msg."""

    fields = (
        ("family", "B"),
        ("state", "B"),
        ("__timers", "xx"),
        ("identity", "48s"),
    )


SOCK_DIAG = netlink.Family(
    NETLINK_SOCK_DIAG,
    questions={SOCK_DIAG_BY_FAMILY: _Question, SOCK_DESTROY: _Question},
    answers={SOCK_DIAG_BY_FAMILY: _Entry},
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP socket as the kernel identifies it."""

    family: int
    """AF_INET, or AF_INET6 for a socket of that kind."""
    state: int
    """TCP_*."""
    identity: bytes
    """struct inet_diag_sockid: ports, addresses and the kernel's cookie."""

    @property
    def local(self) -> IPv4Address | None:
        """The local IPv4 address, also if it is mapped into IPv6; None: it is another one of IPv6."""
        source = _IDENTITY.unpack(self.identity)[2]
        if self.family == socket.AF_INET:
            return IPv4Address(source[:4])
        if self.family == socket.AF_INET6 and source.startswith(_MAPPED):
            return IPv4Address(source[12:])
        return None


async def established(address: IPv4Address) -> bool:
    """Return whether there is an established TCP connection with this local address.

    Raises:
        KernelRefused: ENOENT in a kernel without CONFIG_INET_DIAG.
    """
    async with aclosing(_connections(address, 1 << TCP_ESTABLISHED)) as connections:
        async for _ in connections:
            return True
    return False


async def destroy(address: IPv4Address) -> int:
    """Reset all TCP connections with this local address: RFC 3927 section 2.5. Return how many.

    While the address is on an interface, each peer gets a reset. The programs here get ECONNABORTED.

    Raises:
        KernelRefused: after all was tried; EOPNOTSUPP if there are connections and the kernel was built
            without CONFIG_INET_DIAG_DESTROY.
    """
    # First the whole list: a reset in between would move the entries that follow.
    found = [connection async for connection in _connections(address, CONNECTED)]
    if not found:
        return 0
    destroyed = 0
    problem: KernelRefused | None = None
    what = f"reset the connections of {address}"
    with closing(netlink.Socket(SOCK_DIAG)) as opened:
        for connection in found:
            request = _request(what, SOCK_DESTROY, connection)
            try:
                async for _ in opened.ask(request, netlink.CHANGE):
                    pass
                destroyed += 1
            except KernelRefused as refused:
                if refused.errno not in _NOT_THERE:
                    problem = problem or refused
                if opened.failed:
                    break
    if problem is not None:
        raise problem
    return destroyed


async def _connections(address: IPv4Address, states: int) -> AsyncGenerator[Connection, None]:
    """Yield the TCP connections of the address in these states (a bit each).

    Raises:
        KernelRefused: they cannot be listed.
    """
    what = f"list the connections of {address}"
    left = CONNECTIONS_MAX
    for family in (socket.AF_INET, socket.AF_INET6):
        anything = Connection(family, 0, bytes(_IDENTITY.size))
        filter_ = [("INET_DIAG_REQ_BYTECODE", _local_is(address))]
        request = _request(what, SOCK_DIAG_BY_FAMILY, anything, states, filter_)
        with closing(netlink.Socket(SOCK_DIAG)) as opened:
            async with aclosing(opened.ask(request, netlink.DUMP)) as answer:
                async for entry in answer:
                    found = Connection(entry["family"], entry["state"], entry["identity"])
                    if found.local != address or not states >> found.state & 1:
                        continue  # the kernel's filter is checked
                    yield found
                    left -= 1
                    if not left:
                        return


# Messages


def _request(
    what: str,
    kind: int,
    connection: Connection,
    states: int = 0,
    attributes: Sequence[tuple[str, object]] = (),
) -> Request:
    fields = {
        "family": connection.family,
        "protocol": socket.IPPROTO_TCP,
        "states": states,
        "identity": connection.identity,
    }
    return Request(what, kind, fields, attributes)


def _local_is(address: IPv4Address) -> bytes:
    """Return the kernel's filter for this local address, also mapped into IPv6.

    One instruction: code, the offset if the condition holds (the end: accepted) and if not (4 bytes
    beyond the end: rejected), then struct inet_diag_hostcond: family, prefix, any port (-1).
    """
    condition = struct.pack("=BBxxi4s", socket.AF_INET, 32, -1, address.packed)
    length = 4 + len(condition)
    return struct.pack("=BBH", INET_DIAG_BC_S_COND, length, length + 4) + condition

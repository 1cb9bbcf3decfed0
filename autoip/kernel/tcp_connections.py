"""TCP connections of one local address: whether there are any, and their end (netlink sock_diag).

The kernel picks out the few sockets that matter. (pyroute2 0.9.7 has every socket sent, decodes them
all, blocks meanwhile, and knows no SOCK_DESTROY.)

Each call opens a socket of its own. It is connected to the kernel, which then refuses to deliver
what other processes send to it. An answer that makes no sense counts as a refusal (EBADMSG).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from autoip.errors import KernelRefused

# include/uapi/linux/netlink.h
NETLINK_SOCK_DIAG = 4
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
# include/uapi/linux/sock_diag.h and inet_diag.h
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_S_COND = 1, 7
# include/net/tcp_states.h
TCP_ESTABLISHED, TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN, TCP_NEW_SYN_RECV = 1, 6, 7, 10, 12
STATES = range(TCP_ESTABLISHED, TCP_NEW_SYN_RECV + 1)

CONNECTED = sum(
    1 << state for state in STATES if state not in (TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN)
)
"""The states in which there is a peer whom a reset can concern.

In TIME_WAIT the connection has ended on both sides.
"""

ANSWER_MAX = 32768
"""Bytes of the longest answer: the kernel makes them no longer, whatever the buffer."""
CONNECTIONS_MAX = 65536
"""Connections that one call looks at, at most."""
STRIDE = 64
"""Connections after which others get the processor."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_ENTRY = struct.Struct("=BBxx48s20x")  # struct inet_diag_msg
_IDENTITY = struct.Struct("=2s2s16s16sI8s")  # struct inet_diag_sockid
_MAPPED = bytes(10) + b"\xff\xff"
_NOT_THERE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP socket as the kernel names it."""

    family: int
    """AF_INET, or AF_INET6 for a socket of that kind."""
    state: int
    """TCP_*."""
    identity: bytes
    """struct inet_diag_sockid: ports, addresses and the kernel's cookie."""

    @property
    def local(self) -> IPv4Address | None:
        """The local address; None if it is not one of IPv4, also mapped into IPv6."""
        source = _IDENTITY.unpack(self.identity)[2]
        if self.family == socket.AF_INET:
            return IPv4Address(source[:4])
        if self.family == socket.AF_INET6 and source.startswith(_MAPPED):
            return IPv4Address(source[12:])
        return None


async def established(address: IPv4Address) -> bool:
    """Whether there is an established TCP connection with this local address.

    Raises KernelRefused, with ENOENT in a kernel without CONFIG_INET_DIAG.
    """
    async with aclosing(_connections(address, 1 << TCP_ESTABLISHED)) as connections:
        async for _ in connections:
            return True
    return False


async def destroy(address: IPv4Address) -> int:
    """Reset all TCP connections with this local address: RFC 3927 section 2.5. Return how many.

    While the address is on an interface, the peers are told. The programs get ECONNABORTED.

    Raises KernelRefused when all was tried, with EOPNOTSUPP if there are connections and the kernel
    was built without CONFIG_INET_DIAG_DESTROY.
    """
    # First the whole list: what changes meanwhile would move what is still to come.
    found = [connection async for connection in _connections(address, CONNECTED)]
    if not found:
        return 0
    what = f"reset the connections of {address}"
    destroyed = 0
    problem = 0
    with _opened(what) as opened:
        for number, connection in enumerate(found, 1):
            opened.send(_message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, number, connection))
            error = await _acknowledged(opened, number)
            if not error:
                destroyed += 1
            elif error not in _NOT_THERE:
                problem = problem or error
            if number % STRIDE == 0:
                await asyncio.sleep(0)
    if problem:
        raise KernelRefused(problem, what)
    return destroyed


async def _connections(address: IPv4Address, states: int) -> AsyncGenerator[Connection, None]:
    """The TCP connections of the address in these states (a bit each). Raises KernelRefused."""
    what = f"list the connections of {address}"
    left = CONNECTIONS_MAX
    for family in (socket.AF_INET, socket.AF_INET6):
        with _opened(what) as opened:
            anything = Connection(family, 0, bytes(_IDENTITY.size))
            filter_ = _attribute(INET_DIAG_REQ_BYTECODE, _local_is(address))
            flags = NLM_F_REQUEST | NLM_F_DUMP
            opened.send(_message(SOCK_DIAG_BY_FAMILY, flags, family, anything, states, filter_))
            done = False
            while not done:
                for message in _messages(await _answer(opened), family):
                    if not isinstance(message, Connection):
                        if message:
                            raise KernelRefused(message, what)
                        done = True
                        break
                    if message.local != address or not states >> message.state & 1:
                        continue  # the kernel's filter is checked
                    yield message
                    left -= 1
                    if not left:
                        return
                await asyncio.sleep(0)


async def _answer(opened: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(opened, ANSWER_MAX)


async def _acknowledged(opened: socket.socket, sequence: int) -> int:
    """The error number of the answer to a request, 0 for success."""
    for message in _messages(await _answer(opened), sequence):
        return message if isinstance(message, int) else errno.EBADMSG
    return errno.EBADMSG


@contextmanager
def _opened(what: str) -> Iterator[socket.socket]:
    """A socket that hears the kernel alone. An OSError becomes KernelRefused."""
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG
        ) as opened:
            opened.connect((0, 0))
            yield opened
    except OSError as problem:
        raise KernelRefused(problem.errno or errno.EIO, what) from problem


# Messages


def _message(
    kind: int,
    flags: int,
    sequence: int,
    connection: Connection,
    states: int = 0,
    attributes: bytes = b"",
) -> bytes:
    body = (
        _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, states, connection.identity)
        + attributes
    )
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(number: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), number) + payload


def _local_is(address: IPv4Address) -> bytes:
    """The kernel's filter: the local address is this one, also mapped into IPv6.

    One instruction: code, where to go on if it is so (at the end: accepted), where otherwise (4
    bytes beyond the end: rejected), then struct inet_diag_hostcond: family, prefix, any port (-1).
    """
    condition = struct.pack("=BBxxi4s", socket.AF_INET, 32, -1, address.packed)
    length = 4 + len(condition)
    return struct.pack("=BBH", INET_DIAG_BC_S_COND, length, length + 4) + condition


def _messages(answer: bytes, sequence: int) -> Iterator[Connection | int]:
    """What an answer to the request `sequence` says.

    A number ends it: 0 for success, else the error. What cannot be read is EBADMSG.
    """
    while answer:
        if len(answer) < _HEADER.size:
            yield errno.EBADMSG
            return
        length, kind, _, number, _ = _HEADER.unpack_from(answer)
        if not _HEADER.size <= length <= len(answer) or number != sequence:
            yield errno.EBADMSG
            return
        body, answer = answer[_HEADER.size : length], answer[(length + 3) & ~3 :]
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            yield _error(body)
            return
        if kind != SOCK_DIAG_BY_FAMILY:
            continue
        if len(body) < _ENTRY.size:
            yield errno.EBADMSG
            return
        yield Connection(*_ENTRY.unpack_from(body))


def _error(body: bytes) -> int:
    """The number in NLMSG_ERROR and NLMSG_DONE, made positive."""
    if len(body) < 4:
        return errno.EBADMSG
    (number,) = struct.unpack_from("=i", body)
    return -number if -number in errno.errorcode else errno.EBADMSG if number else 0

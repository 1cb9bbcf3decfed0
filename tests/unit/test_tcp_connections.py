"""TCP connections: answers of the kernel are read with care. (Wrong lengths: see test_netlink.)"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from ipaddress import IPv4Address

import pytest

from autoip.errors import KernelRefused
from autoip.kernel import netlink, tcp_connections
from autoip.kernel.tcp_connections import (
    CONNECTED,
    SOCK_DIAG_BY_FAMILY,
    TCP_ESTABLISHED,
    TCP_TIME_WAIT,
    Connection,
)
from tests.fed_socket import message

A = IPv4Address("169.254.20.20")
B = IPv4Address("169.254.33.44")


def _identity(source: bytes) -> bytes:
    return struct.pack(
        "=2s2s16s16sI8s", b"\0\x50", b"\x30\x39", source.ljust(16, b"\0"), bytes(16), 0, b"cookie!!"
    )


def _entry(source: bytes = A.packed, state: int = TCP_ESTABLISHED) -> bytes:
    body = struct.pack("=BBBB", socket.AF_INET, state, 0, 0) + _identity(source) + bytes(20)
    return message(SOCK_DIAG_BY_FAMILY, body, sequence=1)


DONE = message(netlink.NLMSG_DONE, bytes(4), sequence=1)


def found(
    monkeypatch: pytest.MonkeyPatch, *datagrams: bytes, states: int = CONNECTED
) -> list[Connection]:
    """Return the list made of these answers, for IPv4 sockets and then for IPv6 sockets."""
    answer(monkeypatch, *datagrams)

    async def collect() -> list[Connection]:
        return [one async for one in tcp_connections._connections(A, states)]

    return asyncio.run(collect())


def answer(monkeypatch: pytest.MonkeyPatch, *datagrams: bytes) -> None:
    left = list(datagrams)

    async def receive(self: netlink.Socket) -> bytes:
        return left.pop(0)

    monkeypatch.setattr(netlink.Socket, "_receive", receive)


def test_list(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Connection(socket.AF_INET, TCP_ESTABLISHED, _identity(A.packed))
    assert found(monkeypatch, _entry() + _entry(), DONE, _entry() + DONE) == [ours, ours, ours]


def test_the_filter_of_the_kernel_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    others = _entry(B.packed) + _entry(state=TCP_TIME_WAIT) + _entry(bytes(16))
    assert found(monkeypatch, others + DONE, DONE) == []


def test_the_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_connections, "CONNECTIONS_MAX", 3)
    assert len(found(monkeypatch, _entry() * 2, _entry() * 2)) == 3


@pytest.mark.parametrize(
    ("family", "source", "local"),
    [
        (socket.AF_INET, A.packed, A),
        (socket.AF_INET6, bytes(10) + b"\xff\xff" + A.packed, A),
        (socket.AF_INET6, bytes(12) + A.packed, None),
        (socket.AF_INET6, A.packed, None),
        (socket.AF_UNIX, A.packed, None),
    ],
)
def test_local_address(family: int, source: bytes, local: IPv4Address | None) -> None:
    assert Connection(family, TCP_ESTABLISHED, _identity(source)).local == local


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.ENOENT), sequence=1), errno.ENOENT),
        (message(SOCK_DIAG_BY_FAMILY, bytes(51), sequence=1), errno.EBADMSG),
        (message(SOCK_DIAG_BY_FAMILY, b"", sequence=1), errno.EBADMSG),
        (DONE[:15], errno.EBADMSG),
    ],
)
def test_an_answer_that_is_refused_or_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, end: bytes, number: int
) -> None:
    with pytest.raises(KernelRefused) as refused:
        found(monkeypatch, _entry() + end)
    assert (refused.value.errno, refused.value.what) == (number, f"list the connections of {A}")


def test_all_are_tried_before_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ended meanwhile is not a refusal."""
    ends = [-errno.ENOENT, 0, -errno.EPERM, -errno.EOPNOTSUPP, 0]
    acknowledged = [
        message(netlink.NLMSG_ERROR, struct.pack("=i", end), sequence=number)
        for number, end in enumerate(ends, 1)
    ]
    answer(monkeypatch, _entry() * 2 + DONE, DONE, *acknowledged[:2])
    assert asyncio.run(tcp_connections.destroy(A)) == 1
    answer(monkeypatch, _entry() * 5 + DONE, DONE, *acknowledged)
    with pytest.raises(KernelRefused) as refused:
        asyncio.run(tcp_connections.destroy(A))
    assert (refused.value.errno, refused.value.what) == (
        errno.EPERM,
        f"reset the connections of {A}",
    )


def test_a_socket_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that failed gets no further request."""
    lost = message(99, b"", length=0)
    answer(monkeypatch, _entry() * 3 + DONE, DONE, lost)
    with pytest.raises(KernelRefused) as refused:
        asyncio.run(tcp_connections.destroy(A))
    assert refused.value.errno == errno.EBADMSG


def test_no_socket_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    family = netlink.Family(31, tcp_connections.SOCK_DIAG.questions, {})
    monkeypatch.setattr(tcp_connections, "SOCK_DIAG", family)
    with pytest.raises(KernelRefused) as refused:
        asyncio.run(tcp_connections.established(A))
    assert refused.value.errno == errno.EPROTONOSUPPORT

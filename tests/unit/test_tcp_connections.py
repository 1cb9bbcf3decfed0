"""sockdiag: what the kernel answers is read with care."""

from __future__ import annotations

import errno
import random
import socket
import struct
from ipaddress import IPv4Address

import pytest

from autoip.kernel import tcp_connections
from autoip.kernel.tcp_connections import (
    NLMSG_DONE,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    TCP_ESTABLISHED,
    Connection,
)

A = IPv4Address("169.254.20.20")
SEQUENCE = 7


def _message(kind: int, body: bytes, *, length: int | None = None, sequence: int = 7) -> bytes:
    size = 16 + len(body) if length is None else length
    padding = bytes(-len(body) % 4)
    return struct.pack("=IHHII", size, kind, 0, sequence, 99) + body + padding


def _identity(source: bytes) -> bytes:
    return struct.pack(
        "=2s2s16s16sI8s", b"\0\x50", b"\x30\x39", source.ljust(16, b"\0"), bytes(16), 0, b"cookie!!"
    )


def _entry(family: int, source: bytes, state: int = TCP_ESTABLISHED) -> bytes:
    return struct.pack("=BBBB", family, state, 0, 0) + _identity(source) + bytes(20)


ENTRY = _message(SOCK_DIAG_BY_FAMILY, _entry(socket.AF_INET, A.packed))
DONE = _message(NLMSG_DONE, bytes(4))


def read(answer: bytes) -> list[Connection | int]:
    return list(tcp_connections._messages(answer, SEQUENCE))


def test_answer() -> None:
    assert read(ENTRY + ENTRY + DONE) == [
        Connection(socket.AF_INET, TCP_ESTABLISHED, _identity(A.packed)),
        Connection(socket.AF_INET, TCP_ESTABLISHED, _identity(A.packed)),
        0,
    ]
    assert read(b"") == []


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
    ("answer", "number"),
    [
        (_message(NLMSG_ERROR, bytes(4)), 0),
        (_message(NLMSG_ERROR, struct.pack("=i", -errno.EOPNOTSUPP)), errno.EOPNOTSUPP),
        (_message(NLMSG_DONE, struct.pack("=i", -errno.ENOENT)), errno.ENOENT),
        (_message(NLMSG_ERROR, struct.pack("=i", 5)), errno.EBADMSG),
        (_message(NLMSG_ERROR, struct.pack("=i", -(2**31))), errno.EBADMSG),
        (_message(NLMSG_ERROR, b"\xff\xff\xff"), errno.EBADMSG),
        (_message(NLMSG_DONE, b""), errno.EBADMSG),
        (DONE[:15], errno.EBADMSG),
        (b"\0", errno.EBADMSG),
        (_message(NLMSG_DONE, bytes(4), length=0), errno.EBADMSG),
        (_message(NLMSG_DONE, bytes(4), length=15), errno.EBADMSG),
        (_message(NLMSG_DONE, bytes(4), length=2**32 - 1), errno.EBADMSG),
        (_message(NLMSG_DONE, bytes(4), sequence=8), errno.EBADMSG),
        (_message(SOCK_DIAG_BY_FAMILY, _entry(2, A.packed)[:-1]), errno.EBADMSG),
        (_message(SOCK_DIAG_BY_FAMILY, b""), errno.EBADMSG),
    ],
)
def test_end(answer: bytes, number: int) -> None:
    """The number that ends an answer; nothing after it is looked at."""
    assert read(ENTRY + answer + ENTRY)[1:] == [number]


def test_other_kinds_are_passed_over() -> None:
    assert read(_message(1, bytes(9)) + DONE) == [0]


def test_garbage() -> None:
    """Whatever comes: connections, then at most one number, and no exception."""
    chance = random.Random(3927)
    good = ENTRY + _message(NLMSG_ERROR, struct.pack("=i", -1)) + DONE
    for _ in range(20000):
        answer = bytearray(good[: chance.randrange(len(good) + 1)])
        for _ in range(chance.randrange(6)):
            if answer:
                answer[chance.randrange(len(answer))] = chance.randrange(256)
        found = read(bytes(answer))
        assert all(isinstance(one, Connection) for one in found[:-1])
        for one in found:
            if isinstance(one, Connection):
                assert one.local is None or one.local.version == 4
            else:
                assert one == 0 or one in errno.errorcode

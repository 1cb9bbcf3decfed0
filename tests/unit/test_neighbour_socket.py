"""The filter of a link's socket for neighbours, which the kernel runs on a socket pair (no privileges).

What leaves the host is in tests/netns/test_cables.py: a socket pair has no direction.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoip.core import arp
from autoip.core.arp import ArpPacket, Operation
from autoip.kernel.neighbour_socket import KNOWN_MAX, _Digest, assemble
from autoip.kernel.netlink_filter import attach
from tests.unit.fake_kernel import mac_of

MAC, ONE, OTHER = mac_of(1), mac_of(101), mac_of(102)
X, Y = IPv4Address("169.254.7.7"), IPv4Address("169.254.8.8")
Known = list[tuple[IPv4Address, bytes]]


class Pair:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.setblocking(False)
        self.digest = _Digest()

    def ignore(self, known: Known) -> None:
        attach(self.far, assemble(MAC, known, self.digest))

    def passes(self, frame: bytes) -> bool:
        self.near.send(frame)
        try:
            passed = self.far.recv(4096)
        except BlockingIOError:
            return False
        assert passed == frame[:42]
        return True


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.near.close()
    pair.far.close()


GOOD = arp.announcement(ONE, X).emit()
REPLY = ArpPacket(Operation.REPLY, ONE, X, MAC, Y, MAC).emit()


def changed(at: int, new: bytes, frame: bytes = GOOD) -> bytes:
    return frame[:at] + new + frame[at + len(new) :]


@pytest.mark.parametrize(
    "frame", [GOOD, REPLY, GOOD + bytes(18)], ids=["request", "reply", "padded"]
)
def test_a_neighbour_passes(pair: Pair, frame: bytes) -> None:
    pair.ignore([])
    assert pair.passes(frame)


@pytest.mark.parametrize(
    "frame",
    [
        GOOD[:41],
        changed(12, b"\x80\x35"),
        changed(14, b"\x00\x06"),
        changed(18, b"\x08"),
        changed(20, b"\x00\x03"),
        changed(22, MAC),
        changed(28, b"\xa9\xff"),
        changed(28, bytes(4)),
    ],
    ids=["short", "type", "hardware", "length", "operation", "own", "network", "probe"],
)
def test_one_changed_field_does_not(pair: Pair, frame: bytes) -> None:
    pair.ignore([])
    assert not pair.passes(frame)


def test_a_datagram_to_one_host_does_not(pair: Pair) -> None:
    """All that a socket pair carries is to one host."""
    pair.ignore([])
    assert not pair.passes(ONE + MAC + b"\x08\x00" + bytes(12) + X.packed + bytes(20))


@pytest.mark.parametrize("count", [1, 2, 199, 200, 201, 400, KNOWN_MAX])
def test_a_known_neighbour_does_not(pair: Pair, count: int) -> None:
    known = [(X + number, mac_of(1000 + number)) for number in range(count)]
    pair.ignore(known)
    assert not any(pair.passes(arp.announcement(mac, address).emit()) for address, mac in known)
    assert pair.passes(arp.announcement(ONE, X).emit())
    assert pair.passes(arp.announcement(mac_of(1000), X + count).emit())


def test_more_known_neighbours_than_the_filter_has_room_for(pair: Pair) -> None:
    known = [(X + number, mac_of(1000 + number)) for number in range(KNOWN_MAX + 1)]
    pair.ignore(known)
    assert pair.passes(arp.announcement(known[-1][1], known[-1][0]).emit())


_ADDRESS = st.integers(0, 0xFFFF).map(lambda low: IPv4Address("169.254.0.0") + low)
_MAC = st.binary(min_size=6, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_ADDRESS, _MAC), max_size=4), _ADDRESS, _MAC)
def test_kernel_and_python_have_one_digest(
    pair: Pair, known: Known, address: IPv4Address, mac: bytes
) -> None:
    pair.ignore(known)
    for one, its in [*known, (address, mac)]:
        frame = arp.announcement(its, one).emit()
        assert pair.passes(frame) == ((one, its) not in known and its != MAC)


def test_the_digest_is_another_one_for_each_socket() -> None:
    assert len({_Digest().of(X, ONE) for _ in range(10)}) > 1

"""def-reset: TCP connections from an address that is given up are reset first (RFC 3927, 2.5)."""

from __future__ import annotations

import contextlib
import select
import socket
from ipaddress import IPv4Address

import pytest

from lab import AddressMonitor, Frame, Namespace, Port, frames

from .commands import report
from .conftest import MakeDaemon
from .helpers import (
    ETHERTYPE_IPV4,
    NETNS,
    PATIENCE,
    PEER,
    RIVAL,
    A,
    bind,
    claimed_other,
)
from .talk import Talk

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
STATIC = IPv4Address("192.0.2.5")
STATIC_PEER = IPv4Address("192.0.2.77")


@pytest.fixture
def neighbour(port: Port) -> Namespace:
    """A real host at the other end of the cable, with a link-local and a routable address."""
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 brd + dev {port.far}")
    far.ip(f"addr add {STATIC_PEER}/24 brd + dev {port.far}")
    port.host.ip(f"addr add {STATIC}/24 brd + dev eth0")
    return far


def _is_reset(frame: Frame, source: IPv4Address) -> bool:
    """A TCP segment with RST from this address."""
    data = frame.data
    return (
        frame.from_host
        and data[12:14] == ETHERTYPE_IPV4.to_bytes(2, "big")
        and data[23] == socket.IPPROTO_TCP
        and data[26:30] == source.packed
        and bool(data[14 + 4 * (data[14] & 15) + 13] & 4)
    )


def test_connections_are_reset_before_the_address_goes(
    port: Port,
    neighbour: Namespace,
    make_by: MakeDaemon,
    by: str,
    stack: contextlib.ExitStack,
) -> None:
    """def-reset: the neighbour gets the RST while the address is there still; no other connection is touched."""
    daemon = make_by(port, *FAST)
    bind(port, daemon)
    monitor = stack.enter_context(AddressMonitor(port.host))
    lost = stack.enter_context(Talk(port.host, A, neighbour, PEER))
    kept = stack.enter_context(Talk(port.host, STATIC, neighbour, STATIC_PEER))
    for talk in (lost, kept):
        talk.alive()
    since = port.sniffer.mark()
    for _ in range(2):
        port.send(frames.conflict_request(RIVAL, A))
    theirs, ours = lost.ends
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)
    with pytest.raises(ConnectionAbortedError):
        ours.recv(1)
    gone, _, _ = monitor.wait_for(lambda added, a: not added and a.address == A, PATIENCE)
    # What came before this announcement has been read by the sniffer as well.
    claimed_other(port, A, since=since)
    resets = [f for f in port.sniffer.frames(since) if _is_reset(f, A)]
    # The monitor's stamp is its own, so never too early; the frame's is the kernel's.
    assert len(resets) == 1 and resets[0].ns < gone
    assert not select.select(kept.ends, [], [], 0)[0]
    kept.alive()
    daemon.wait_line(rf"eth0: reset 1 connections from {A}")
    assert (report(daemon)["limits"] == []) == (by == "tcx")

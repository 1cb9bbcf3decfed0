"""What the address does to other traffic (RFC 3927, 1.9 and 2.6)."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address

import pytest

from lab import Namespace, Port, frames

from .conftest import MakeDaemon
from .helpers import LINK_LOCAL, NETNS, PEER, A, claim

pytestmark = NETNS

STATIC = IPv4Address("192.0.2.5")
ROUTER = IPv4Address("192.0.2.1")
FAR = IPv4Address("198.51.100.7")


def _source(namespace: Namespace, destination: IPv4Address) -> IPv4Address:
    """The source address that the kernel gives a new connection."""

    def connect() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((str(destination), 9))
            return str(sock.getsockname()[0])

    return IPv4Address(namespace.call(connect))


def _send_from(namespace: Namespace, source: IPv4Address, destination: IPv4Address) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((str(source), 0))
            sock.sendto(b"x", (str(destination), 9))

    namespace.call(send)


def _routable(port: Port) -> None:
    port.host.ip(f"addr add {STATIC}/24 brd + dev eth0")
    port.host.ip(f"route add default via {ROUTER}")


@pytest.mark.parametrize("routable_first", [True, False])
def test_routable_address_is_the_source(
    port: Port, make_autoip: MakeDaemon, routable_first: bool
) -> None:
    """fwd-source: new connections use the routable address, but for link-local destinations."""
    if routable_first:
        _routable(port)
    claim(port, make_autoip(port, "--delay", "50", "--ip", str(A)))
    if not routable_first:
        _routable(port)
    assert _source(port.host, FAR) == STATIC
    assert _source(port.host, ROUTER) == STATIC
    assert _source(port.host, PEER) == A


@pytest.mark.parametrize("source", [None, A, STATIC], ids=["any", "link-local", "routable"])
def test_link_local_destinations_are_on_the_link(
    port: Port, make_autoip: MakeDaemon, source: IPv4Address | None
) -> None:
    """fwd-onlink: asked for on the link itself, never handed to a router, whatever the source address."""
    _routable(port)
    claim(port, make_autoip(port, "--delay", "50", "--ip", str(A)))
    since = port.sniffer.mark()
    if source is None:
        port.host.send_udp(PEER)
    else:
        _send_from(port.host, source, PEER)
    asked = port.sniffer.wait_for(lambda f: f.op == frames.REQUEST, 5, since=since)
    assert (asked.tpa, asked.broadcast) == (PEER, True)
    assert asked.spa == (source or A)
    port.host.send_udp(FAR)
    through = port.sniffer.wait_for(lambda f: f.tpa != PEER, 5, since=since)
    assert (through.tpa, through.spa) == (ROUTER, STATIC)


def test_both_addresses_talk_to_a_neighbour(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-onlink: a link-local-only peer reaches us, and we it, also from the routable address."""
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 dev {port.far}")
    far.ip(f"addr add {ROUTER}/24 dev {port.far}")
    _routable(port)
    claim(port, make_autoip(port, "--delay", "50", "--ip", str(A)))
    for namespace, source, destination in (
        (far, PEER, A),
        (port.host, A, PEER),
        (port.host, STATIC, PEER),
        (port.host, STATIC, ROUTER),
    ):
        namespace.run("ping", "-c", "1", "-W", "5", "-I", str(source), str(destination))


def test_no_default_route(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-any is not asked for: what is off the link stays unreachable, and only our prefix is routed."""
    claim(port, make_autoip(port, "--delay", "50"))
    with pytest.raises(OSError, match="unreachable"):
        port.host.send_udp(FAR)
    routes = json.loads(port.host.ip("-j route show"))
    assert [route["dst"] for route in routes] == [str(LINK_LOCAL)]
    asked = port.host.run("ip", "route", "get", str(FAR), check=False)
    assert asked == ""


def test_other_routes_are_not_touched(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-source: the main table and its default route are as they were, but for our own prefix."""
    _routable(port)
    before = port.host.ip("route show")
    daemon = make_autoip(port, "--delay", "50")
    claim(port, daemon)
    lines = port.host.ip("route show").splitlines()
    assert [line for line in lines if not line.startswith("169.254.")] == before.splitlines()
    assert daemon.stop() == 0
    assert port.host.ip("route show") == before

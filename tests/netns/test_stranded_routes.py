"""co-route: what goes with the last address that is not ours, and nothing else.

`ip` stands for a DHCP client that is killed, or for the administrator.
"""

from __future__ import annotations

import contextlib
import signal
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Namespace, Port, Switch

from .conftest import MakeDaemon
from .helpers import NETNS, PEER, A, bind, wait_until

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
LEASE, OTHER_LEASE = IPv4Address("192.0.2.5"), IPv4Address("198.51.100.5")
GONE = (
    "default via 192.0.2.1 dev eth0 metric 100",
    "203.0.113.0/24 via 192.0.2.2 dev eth0",
    "203.0.113.0/24 via 192.0.2.1 dev eth0 metric 7",
    "default via 192.0.2.1 dev eth0 table 77",
    "default via 10.9.9.9 dev eth0 metric 9 onlink",
    "198.18.1.0/24 via 192.0.2.1 dev eth0 src 10.8.8.8",
    "198.18.0.0/24 dev eth0 scope link",
    "224.0.0.0/4 dev eth0 scope link table 78",
)
"""What the kernel removes with the last address of eth0."""
STAYS = (
    f"203.0.113.128/25 via {PEER} dev eth0",
    f"203.0.113.0/24 via {PEER} dev eth0 metric 8",
    "203.0.113.9 via 10.7.7.1 dev eth1",
    "default via 10.7.7.1 dev eth1 metric 200",
    "198.18.2.0/24 dev eth1 scope link",
    "blackhole 198.18.3.0/24",
    "unreachable default metric 4000",
)
"""What our address carries, what is by another interface, and what is by none."""
NOT_OF_ROUTES = ("169.254.", "local ", "broadcast ", "10.8.8.8 ", "10.7.7.0/24")


def _routes(host: Namespace) -> set[str]:
    """Those that were added by hand, in all tables."""
    lines = host.ip("route show table all").splitlines()
    found = {" ".join(line.split()) for line in lines if not line.startswith(NOT_OF_ROUTES)}
    return {line for line in found if "proto 169" not in line and "proto kernel" not in line}


@pytest.fixture
def host(port: Port, stack: contextlib.ExitStack) -> Namespace:
    """With eth1, on a link of its own, which has the address 10.7.7.7."""
    second = stack.enter_context(Switch()).attach(port.host, "eth1", mac="02:00:00:00:00:e1")
    second.host.ip("addr add 10.7.7.7/24 dev eth1")
    # The address of a route by eth0 is somewhere else.
    second.host.ip("addr add 10.8.8.8/32 dev lo")
    return port.host


def _lease(host: Namespace) -> None:
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    for route in (*GONE, *STAYS):
        host.ip(f"route add {route}")


def test_as_the_kernel_would(port: Port, host: Namespace, make_autoip: MakeDaemon) -> None:
    """With autoip those routes are left that are left without it, and what its address carries."""
    host.ip("addr add 169.254.9.9/16 dev eth0")  # else the kernel takes no gateway that is there
    _lease(host)
    everything = _routes(host)
    assert len(everything) == len(GONE) + len(STAYS)
    host.ip("addr flush dev eth0")
    without = _routes(host)
    assert len(without) == len(STAYS) - 2
    for route in without:
        host.ip(f"route del {route}")

    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    for _ in range(2):
        _lease(host)
        assert _routes(host) == everything
        carried = {route for route in everything if f"via {PEER}" in route}
        said = len(daemon.lines)
        host.ip(f"addr del {LEASE}/24 dev eth0")
        line = daemon.wait_line("removed with the last other address", since=said)
        assert _routes(host) == without | carried
        assert line.count(",") + 1 == len(GONE)
        assert "default via 192.0.2.1," in line and "default via 192.0.2.1 table 77" in line
        for route in without | carried:
            host.ip(f"route del {route}")
    assert host.link_local("eth0") == [A]
    assert daemon.stop() == 0


def test_the_next_lease_gets_its_default_route(
    port: Port, host: Namespace, make_autoip: MakeDaemon
) -> None:
    """As a DHCP client does that begins anew in another subnet: it adds, and replaces nothing."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    for address, router in ((LEASE, "192.0.2.1"), (OTHER_LEASE, "198.51.100.1")):
        said = len(daemon.lines)
        host.ip(f"addr add {address}/24 brd + dev eth0")
        host.ip(f"route add default via {router} dev eth0")
        assert _routes(host) == {f"default via {router} dev eth0"}
        host.ip(f"addr del {address}/24 dev eth0")
        daemon.wait_line("removed with the last other address", since=said)
        # Later than the removal: nothing looks any more.
        host.ip("route add 203.0.113.0/24 dev eth0 scope link")
        assert _routes(host) == {"203.0.113.0/24 dev eth0 scope link"}
        host.ip("addr add 10.6.6.6/32 dev lo")
        host.ip("addr del 10.6.6.6/32 dev lo")
        wait_until(lambda: host.link_local("eth0") == [A], "our address")
        assert _routes(host) == {"203.0.113.0/24 dev eth0 scope link"}
        host.ip("route del 203.0.113.0/24 dev eth0")


@pytest.mark.parametrize("late", [False, True])
def test_a_lease_that_follows_at_once(
    port: Port, host: Namespace, make_autoip: MakeDaemon, late: bool
) -> None:
    """What belongs to the new address stays, however late the removal is seen."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    host.ip("route add default via 192.0.2.1 dev eth0")
    host.ip("route add 203.0.113.0/24 via 192.0.2.1 dev eth0")
    said = len(daemon.lines)
    batch = f"""addr del {LEASE}/24 dev eth0
addr add {OTHER_LEASE}/24 brd + dev eth0
route replace default via 198.51.100.1 dev eth0
route add 10.1.0.0/16 via 198.51.100.2 dev eth0
route add 10.2.0.0/16 dev eth0 scope link
"""
    if late:
        daemon.signal(signal.SIGSTOP)
    host.run("ip", "-batch", "-", stdin=batch)
    if late:
        daemon.signal(signal.SIGCONT)
    new = {
        "default via 198.51.100.1 dev eth0",
        "10.1.0.0/16 via 198.51.100.2 dev eth0",
        "10.2.0.0/16 dev eth0 scope link",
    }
    line = daemon.wait_line("removed with the last other address", since=said)
    assert "203.0.113.0/24 via 192.0.2.1" in line and "10." not in line
    if late:  # else the old default route may have been there still
        assert line.endswith("address: 203.0.113.0/24 via 192.0.2.1")
    assert _routes(host) == new


def test_one_of_two_leases_goes(port: Port, host: Namespace, make_autoip: MakeDaemon) -> None:
    """The kernel would keep the routes, so they stay."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    host.ip(f"addr add {OTHER_LEASE}/24 brd + dev eth0")
    routes = {"default via 192.0.2.1 dev eth0", "198.18.0.0/24 dev eth0 scope link"}
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    for route in routes:
        host.ip(f"route add {route}")
    host.ip(f"addr del {LEASE}/24 dev eth0")
    said = len(daemon.lines)
    host.ip(f"addr del {OTHER_LEASE}/24 dev eth0")
    line = daemon.wait_line("removed with the last other address", since=said)
    assert "default via 192.0.2.1" in line and "198.18.0.0/24" in line
    assert _routes(host) == set()
    assert "removed with" not in "".join(daemon.lines[:said])


def test_what_our_address_does_not_carry_and_the_kernel_keeps(
    port: Port, host: Namespace, make_autoip: MakeDaemon
) -> None:
    """Next hop objects stay, as without us; of several hops none is removed, and one by IPv6 is still reachable."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    host.ip("nexthop add id 7 via 192.0.2.1 dev eth0")
    kept = [
        "203.0.113.0/26 nhid 7",
        "203.0.113.64/26 nexthop via 192.0.2.1 dev eth0 nexthop via 10.7.7.1 dev eth1",
    ]
    ipv6 = Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    if host.call(ipv6.exists):
        host.call(ipv6.write_text, "0")
        kept.append("203.0.113.128/26 via inet6 fe80::1 dev eth0")
    for route in (*kept, "198.18.0.0/24 via 192.0.2.1"):
        host.ip(f"route add {route}")
    host.ip(f"addr del {LEASE}/24 dev eth0")
    line = daemon.wait_line("removed with the last other address")
    assert line.endswith(": 198.18.0.0/24 via 192.0.2.1")
    for route in kept:
        assert host.ip(f"route show {route.split()[0]}")


def test_our_default_route_makes_no_gateway_reachable(port: Port, make_autoip: MakeDaemon) -> None:
    """With --default-route all is on the link, in both tables: it stays, and saves no route of a lease."""
    host = port.host
    daemon = make_autoip(port, *FAST, "--default-route")
    bind(port, daemon)
    wait_until(lambda: "default" in host.ip("route show proto 169"), "our default route")
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    host.ip("route add 203.0.113.0/24 via 192.0.2.1")
    before = host.ip("route show table all proto 169")
    host.ip(f"addr del {LEASE}/24 dev eth0")
    line = daemon.wait_line("removed with the last other address")
    assert line.endswith(": 203.0.113.0/24 via 192.0.2.1")
    assert host.ip("route show table all proto 169") == before
    assert before.count("default") == 2
    # Also where the next address has come before the removal is seen.
    host.ip(f"addr add {LEASE}/24 brd + dev eth0")
    host.ip("route add 203.0.113.0/24 via 192.0.2.1")
    said = len(daemon.lines)
    daemon.signal(signal.SIGSTOP)
    host.ip(f"addr del {LEASE}/24 dev eth0")
    host.ip(f"addr add {OTHER_LEASE}/24 brd + dev eth0")
    daemon.signal(signal.SIGCONT)
    line = daemon.wait_line("removed with the last other address", since=said)
    assert line.endswith(": 203.0.113.0/24 via 192.0.2.1")

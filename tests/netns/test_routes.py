"""--default-route and --route-only (RFC 3927, 2.6.2), and the link-local items III of the Bonjour Conformance Test."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from ipaddress import IPv4Address
from typing import Any

import pytest

from autoip.daemon.foreign_default_route import LOOK_PAUSE
from lab import Namespace, Port, Switch, frames

from .commands import report
from .conftest import MakeDaemon
from .helpers import (
    NETNS,
    PATIENCE,
    PEER,
    RIVAL,
    A,
    bind,
    claim,
    claimed,
    claimed_other,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
ROUTED = (*FAST, "--default-route")
ONLY = ("--route-only",)
STATIC = IPv4Address("192.0.2.5")
ROUTER = IPv4Address("192.0.2.1")
FAR = IPv4Address("17.2.3.4")
"""The Bonjour Conformance Test's neighbour, whose address is not of our link."""
"""Its host with a routable address, that is to talk to a link-local neighbour."""


def _routes(host: Namespace, which: str, table: str = "main") -> list[dict[str, Any]]:
    text = host.run("ip", "-N", "-j", "route", "show", "table", table, check=False)
    return [route for route in json.loads(text or "[]") if route["dst"] == which]


def _default(host: Namespace, table: str = "main") -> list[dict[str, Any]]:
    """Our default routes."""
    return [r for r in _routes(host, "default", table) if r.get("protocol") == "169"]


def _onlink(host: Namespace) -> list[dict[str, Any]]:
    """Our routes to link-local destinations from a routable address."""
    return [r for r in _routes(host, "169.254.0.0/16") if r.get("protocol") == "169"]


def _wait_default(host: Namespace, there: bool) -> None:
    wait_until(lambda: bool(_default(host)) == there, f"our default route: {there}")


def _wait_onlink(host: Namespace, source: IPv4Address | None) -> None:
    wanted = [] if source is None else [str(source)]
    wait_until(lambda: [r["prefsrc"] for r in _onlink(host)] == wanted, f"our route from {source}")


# --default-route


WHERE = {
    "of a router": f"default via {ROUTER}",
    "of the same kind": "default dev eth1 scope link metric 5",
    "with the highest metric": f"default via {ROUTER} metric 4294967295",
    "in another table": f"default via {ROUTER} table 51820",
    "that refuses": "unreachable default metric 7",
}


@pytest.fixture
def other(port: Port, stack: contextlib.ExitStack) -> Port:
    """eth1 of the same host, on a link of its own, with a routable address."""
    switch = stack.enter_context(Switch())
    made = switch.attach(port.host, "eth1", mac="02:00:00:00:00:e1")
    port.host.ip(f"addr add {STATIC}/24 brd + dev eth1")
    return made


@pytest.mark.parametrize("which", WHERE)
def test_only_while_there_is_no_other(
    port: Port, other: Port, make_autoip: MakeDaemon, which: str
) -> None:
    """fwd-any: any other default route, of any interface and in any table, is enough; ours comes and goes with it."""
    host = port.host
    host.ip(f"route add {WHERE[which]}")
    bind(port, make_autoip(port, *ROUTED))
    assert _default(host) == []
    for _ in range(2):
        host.ip(f"route del {WHERE[which]}")
        _wait_default(host, True)
        time.sleep(2 * LOOK_PAUSE)  # no look is under way that would find it
        host.ip(f"route add {WHERE[which]}")
        _wait_default(host, False)


@pytest.mark.parametrize("how", ["link down", "address removed", "interface deleted"])
def test_other_route_that_goes_without_a_word(
    port: Port, other: Port, make_autoip: MakeDaemon, how: str
) -> None:
    """fwd-any: the kernel does not tell of routes that go with their interface or address."""
    host = port.host
    host.ip(f"route add default via {ROUTER}")
    bind(port, make_autoip(port, *ROUTED))
    assert _default(host) == []
    match how:
        case "link down":
            host.ip("link set eth1 down")
        case "address removed":
            host.ip(f"addr del {STATIC}/24 dev eth1")
        case _:
            host.ip("link del eth1")
    _wait_default(host, True)
    assert len(_routes(host, "default")) == 1


def test_default_route_follows_the_address(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-any: it has the address that is held, and is gone while there is none."""
    daemon = make_autoip(port, *ROUTED)
    bind(port, daemon)
    _wait_default(port.host, True)
    since = port.sniffer.mark()
    for _ in range(2):
        port.send(frames.conflict_request(RIVAL, A))
    moved = claimed_other(port, A, since=since)
    wait_until(
        lambda: [r["prefsrc"] for r in _default(port.host)] == [str(moved)], "the new address"
    )
    port.carrier(False)
    daemon.wait_line("no carrier", PATIENCE)
    _wait_default(port.host, False)
    port.carrier(True)
    _wait_default(port.host, True)


def test_default_route_of_a_crash(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-any: what a crash leaves is gone at the next start, which has not the option."""
    daemon = make_autoip(port, *FAST)
    claim(port, daemon, "--default-route")
    _wait_default(port.host, True)
    daemon.kill()
    assert len(_default(port.host)) == 1
    bind(port, daemon)
    assert _routes(port.host, "default") == []


def test_route_events_only_with_the_option(port: Port, make_autoip: MakeDaemon) -> None:
    """Changes of routes do not wake a daemon that does not care."""
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    wait_until(lambda: report(daemon)["state"] == "bound", "bound")
    before = daemon.usage()
    for number in range(50):
        port.host.ip(f"route add 198.51.100.{number}/32 dev eth0")
    # Asked for once, so as to know that it had time to wake.
    port.host.ip("addr add 192.0.2.9/32 dev eth0")
    wait_until(lambda: report(daemon)["others"], "the daemon has heard")
    assert (daemon.usage() - before).voluntary < 45


def test_each_interface_answers_on_its_own_link(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """fwd-any, if-many: also a host whose address is not of the link gets its answer there."""
    switch = stack.enter_context(Switch())
    other = switch.attach(port.host, "eth1", mac="02:00:00:00:00:e1")
    marks = [each.sniffer.mark() for each in (port, other)]
    make_autoip(port, "eth1", "--delay", "50", "--default-route").start()
    for each, mark in zip((port, other), marks, strict=True):
        claimed(each, since=mark)
        far = each.switch.namespace
        far.ip(f"addr add {FAR}/32 dev {each.far}")
        far.ip(f"route add 169.254.0.0/16 dev {each.far} src {FAR}")
    wait_until(lambda: len(_default(port.host, "all")) == 4, "both default routes, in two tables")
    assert len(_default(port.host)) == 2
    for each in (port, other):
        [address] = port.host.link_local(each.name)
        each.switch.namespace.run("ping", "-c", "1", "-W", "5", "-I", str(FAR), str(address))


# --route-only


@pytest.fixture
def neighbour(port: Port) -> Namespace:
    """A host that has a link-local address only, at the other end of the cable."""
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 brd + dev {port.far}")
    far.ip(f"route add default dev {port.far} scope link")
    return far


def test_route_only_claims_nothing(
    port: Port, neighbour: Namespace, make_autoip: MakeDaemon
) -> None:
    """fwd-onlink: no address, no frame of ours; the route is there while there is a routable address."""
    host = port.host
    daemon = make_autoip(port, *ONLY)
    daemon.start()
    daemon.wait_line("standby", PATIENCE)
    assert _onlink(host) == []
    host.ip(f"addr add {STATIC}/24 brd + dev eth0")
    _wait_onlink(host, STATIC)
    [route] = _onlink(host)
    assert (route["dev"], route["scope"]) == ("eth0", "253")
    host.run("ping", "-c", "1", "-W", "5", str(PEER))
    status = report(daemon)
    assert (status["state"], status["policy"], status["address"]) == ("standby", "route-only", None)
    assert str(STATIC) in status["why"]
    host.ip(f"addr del {STATIC}/24 dev eth0")
    _wait_onlink(host, None)
    # One after the other, with nothing between: the second counts.
    host.ip("addr add 192.0.2.6/24 brd + dev eth0")
    host.ip("addr add 198.51.100.6/24 brd + dev eth0")
    _wait_onlink(host, IPv4Address("192.0.2.6"))
    host.ip("addr del 192.0.2.6/24 dev eth0")
    _wait_onlink(host, IPv4Address("198.51.100.6"))
    assert host.link_local("eth0") == []
    assert not [f for f in port.sniffer.arp() if f.is_probe or f.is_announcement]
    assert daemon.stop() == 0
    assert _onlink(host) == []


@pytest.mark.parametrize("how", ["removed", "link down", "carrier", "crash"])
def test_route_only_stays_right(port: Port, make_autoip: MakeDaemon, how: str) -> None:
    """fwd-onlink: put back if somebody removes it, after the link was down, and after a crash."""
    host = port.host
    host.ip(f"addr add {STATIC}/24 brd + dev eth0")
    daemon = make_autoip(port, *ONLY)
    daemon.start()
    _wait_onlink(host, STATIC)
    match how:
        case "removed":
            daemon.signal(signal.SIGSTOP)  # else it may be back before anyone looks
            host.ip("route del 169.254.0.0/16")
            assert _onlink(host) == []
            daemon.signal(signal.SIGCONT)
        case "link down":
            port.down()
            daemon.wait_line("it is down", PATIENCE)
            port.up()
        case "carrier":
            port.carrier(False)
            daemon.wait_line("no carrier", PATIENCE)
            _wait_onlink(host, None)
            port.carrier(True)
        case _:
            daemon.kill()
            host.ip("addr add 192.0.2.6/24 brd + dev eth0")
            said = len(daemon.lines)
            daemon.start()
            daemon.wait_line("only a route", PATIENCE, since=said)
    _wait_onlink(host, STATIC)
    assert daemon.stop() == 0
    assert _onlink(host) == []


def test_route_of_a_crash_goes(port: Port, make_autoip: MakeDaemon) -> None:
    """fwd-onlink: the next start, which claims an address, takes it off."""
    port.host.ip(f"addr add {STATIC}/24 brd + dev eth0")
    daemon = make_autoip(port)
    daemon.start(*ONLY)
    _wait_onlink(port.host, STATIC)
    daemon.kill()
    assert len(_onlink(port.host)) == 1
    bind(port, daemon, *FAST)
    assert _onlink(port.host) == []

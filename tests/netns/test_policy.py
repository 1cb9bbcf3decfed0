"""The policy on real interfaces: co-lease, co-lost, fwd-source; whoever sets the routable address.

`ip addr` stands for a DHCP client here: what the daemon sees of one is the address.
"""

from __future__ import annotations

import contextlib
import json
import time
from ipaddress import IPv4Address

import pytest

from lab import AddressMonitor, Daemon, Port, Switch

from .commands import run
from .conftest import MakeDaemon
from .helpers import (
    NETNS,
    PATIENCE,
    PEER,
    A,
    bind,
    claimed,
    configuration,
    reclaimed,
    wait_until,
)
from .talk import Talk

pytestmark = NETNS

STATIC = IPv4Address("192.0.2.5")
NEAR = IPv4Address("169.254.88.88")
UNHEARD = IPv4Address("169.254.99.99")
FAST = ("--delay", "50", "--ip", str(A))


def fallback(after: float, linger: float) -> tuple[str, ...]:
    return (*FAST, "--policy", "fallback", "--after", str(after), "--linger", str(linger))


def lease(port: Port, address: IPv4Address = STATIC) -> None:
    port.host.ip(f"addr add {address}/24 brd + dev {port.name}")


def expire(port: Port, address: IPv4Address = STATIC) -> None:
    port.host.ip(f"addr del {address}/24 dev {port.name}")


def wait_standby(daemon: Daemon, since: int = 0) -> str:
    return daemon.wait_line("-> standby", 30, since=since)


def source(port: Port, destination: IPv4Address) -> str:
    return str(json.loads(port.host.ip(f"-j route get {destination}"))[0]["prefsrc"])


def test_co_lease_linger_then_release_and_co_lost(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *fallback(0, 1.5))
    address = bind(port, daemon)
    with AddressMonitor(port.host) as monitor:
        began = time.time_ns()
        lease(port)
        daemon.wait_line("ours stays 1.5 s longer")
        gone, _, _ = monitor.wait_for(lambda added, a: not added and a.address == address, PATIENCE)
        assert gone - began >= 1.5e9
    line = wait_standby(daemon)
    assert f"the interface has {STATIC}" in line
    # The program at the egress is detached between address and routes.
    wait_until(lambda: "169.254" not in port.host.ip("route show table all"), "the release")
    assert port.host.link_local(port.name) == []
    mark, lines = port.sniffer.mark(), len(daemon.lines)
    expire(port)
    assert claimed(port, since=mark) == address, "the same one first"
    assert len(port.sniffer.probes(address, mark)) == 3
    daemon.wait_line("standby -> probing: no routable address", since=lines)


def test_another_lease_is_the_source_while_it_lingers(port: Port, make_autoip: MakeDaemon) -> None:
    """The route's source follows: a client that changes its subnet."""
    daemon = make_autoip(port, *fallback(0, 60))
    address = bind(port, daemon)
    lease(port)
    # Lingering: connections that begin now have the routable address, to any destination.
    wait_until(lambda: source(port, PEER) == str(STATIC), "the lease as source")
    port.host.ip(f"addr add 198.51.100.9/24 dev {port.name}")
    expire(port)
    wait_until(lambda: source(port, PEER) == "198.51.100.9", "the other lease as source")
    assert port.host.link_local(port.name) == [address]
    assert daemon.stop() == 0
    assert "169.254" not in port.host.ip("route show table all")


@pytest.mark.parametrize("lingers", ["eth0", "eth1"])
def test_it_lingers_and_the_other_link_keeps_its_neighbours(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack, lingers: str
) -> None:
    """fwd-several, fwd-source: no packet to the other link is lost; by its own the lease is the source."""
    host = port.host
    second = stack.enter_context(Switch()).attach(host, "eth1", mac="02:00:00:00:00:e1")
    ports = {each.name: each for each in (port, second)}
    lingering = ports.pop(lingers)
    (other,) = ports.values()
    other.switch.namespace.ip(f"addr add {PEER}/16 brd + dev {other.far}")
    lingering.switch.namespace.ip(f"addr add {NEAR}/16 brd + dev {lingering.far}")
    lingering.switch.namespace.ip(f"route add 192.0.2.0/24 dev {lingering.far}")
    bind(other, make_autoip(other, "--delay", "50"))
    daemon = make_autoip(lingering, *fallback(0, 60))
    address = bind(lingering, daemon)

    def sources() -> tuple[str, str]:
        """Of new connections by the interface that lingers, and the interface by which an unknown host is sought."""
        by = json.loads(host.ip(f"-j route get {NEAR} oif {lingers}"))[0]["prefsrc"]
        return str(by), str(json.loads(host.ip(f"-j route get {UNHEARD}"))[0]["dev"])

    started = host.popen(_pinging(300), stdout=-1) if lingers == "eth1" else None
    for _ in range(2):
        before = sources()
        assert before == (str(address), "eth0")
        lease(lingering)
        wait_until(lambda: sources() == (str(STATIC), other.name), "the lease as source")
        ping = host.popen(_pinging(50), stdout=-1)
        assert b"50 received" in ping.communicate(timeout=60)[0]
        near = ("ping", "-c", "1", "-W", "5", str(NEAR))
        host.run(*near, "-I", lingers)  # to the lease, as the source
        host.run(*near, "-I", str(address))  # what is underway
        expire(lingering)
        wait_until(lambda b=before: sources() == b, "ours as source")  # type: ignore[misc]
    if started is not None:
        assert b"300 received" in started.communicate(timeout=60)[0]
    lease(lingering)
    wait_until(lambda: sources()[0] == str(STATIC), "the lease as source")
    assert daemon.stop() == 0
    assert f"169.254.0.0/16 dev {lingers}" not in host.ip("route show table all")


def _pinging(count: int) -> list[str]:
    return ["ping", "-q", "-c", str(count), "-i", "0.02", "-W", "10", str(PEER)]


def test_connection_over_the_lease_survives_the_release(
    port: Port, make_autoip: MakeDaemon
) -> None:
    far = port.switch.namespace
    far.ip(f"addr add 192.0.2.1/24 dev {port.far}")
    daemon = make_autoip(port, *fallback(0, 0.5))
    bind(port, daemon)
    lease(port)
    with Talk(port.host, STATIC, far, IPv4Address("192.0.2.1")) as talk:
        wait_standby(daemon)
        wait_until(lambda: port.host.link_local(port.name) == [], "the release")
        talk.alive()


def test_a_session_outlives_flaps_and_refreshes_beside_the_lease(
    port: Port, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """co-session: the address is off for the probe, and comes back, whatever the lease does meanwhile."""
    daemon = make_autoip(port, *fallback(0, 1))
    address = bind(port, daemon)
    port.switch.namespace.ip(f"addr add {PEER}/16 dev {port.far}")
    talk = stack.enter_context(Talk(port.switch.namespace, PEER, port.host, address))
    lease(port)
    daemon.wait_line("ours stays 1 s longer")
    for step in ("flap", "refresh", "flap without a lease", "refresh"):
        mark = port.sniffer.mark()
        if step == "refresh":
            assert run(daemon, f"refresh {port.name}").status == 0
        else:
            port.carrier(False)
            wait_until(lambda: port.host.link_local(port.name) == [], "the loss")
            if step == "flap without a lease":
                expire(port)
            port.carrier(True)
        if step == "flap without a lease":
            port.sniffer.wait_for(lambda f: f.is_probe, 30, since=mark)
            lease(port)
        assert reclaimed(port, since=mark) == address, step
        talk.alive()
    since = len(daemon.lines)
    for end in talk.ends:
        end.close()
    wait_standby(daemon, since)


def test_killed_while_it_lingers(port: Port, make_autoip: MakeDaemon) -> None:
    """What a crash left is taken off by the next start, the route of the lingering included."""
    lease(port)
    before = configuration(port.host)
    expire(port)
    daemon = make_autoip(port, *fallback(0, 60))
    bind(port, daemon)
    lease(port)
    wait_until(lambda: source(port, PEER) == str(STATIC), "the lease as source")
    daemon.kill()
    assert "metric" in port.host.ip("route show 169.254.0.0/16")
    daemon.start()
    wait_standby(daemon)
    wait_until(lambda: configuration(port.host) == before, "no trace")

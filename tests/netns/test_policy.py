"""The policy on real interfaces: co-lease, co-lost, fwd-source; whoever sets the routable address.

`ip addr` stands for a DHCP client here: what the daemon sees of one is the address.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Daemon, Namespace, Port, Switch

from .conftest import MakeDaemon
from .helpers import NETNS, PEER, A, bind, claimed, configuration, wait_until

pytestmark = NETNS

STATIC = IPv4Address("192.0.2.5")
NEAR = IPv4Address("169.254.88.88")
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


def test_co_lease_alongside_stays(port: Port, make_autoip: MakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "autoip.conf"
    file.write_text("[eth0]\nlinger = 0\n")
    daemon = make_autoip(port, *FAST, "--config", str(file))
    address = bind(port, daemon)
    since = port.sniffer.mark()
    lease(port)
    wait_until(lambda: str(STATIC) in port.host.ip("addr"), "the lease")
    expire(port)
    lease(port)
    assert daemon.stop() == 0
    assert not port.sniffer.probes(address, since)
    assert "standby" not in daemon.output


def test_co_lease_linger_then_release_and_co_lost(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *fallback(0, 1.5))
    address = bind(port, daemon)
    lease(port)
    daemon.wait_line("ours stays 1.5 s longer")
    assert port.host.link_local(port.name) == [address]
    # Lingering: connections that begin now have the routable address, to any destination.
    wait_until(lambda: source(port, PEER) == str(STATIC), "the lease as source")
    line = wait_standby(daemon)
    assert f"the interface has {STATIC}" in line
    wait_until(lambda: port.host.link_local(port.name) == [], "the release")
    assert "169.254" not in port.host.ip("route show table all")
    mark, lines = port.sniffer.mark(), len(daemon.lines)
    expire(port)
    assert claimed(port, since=mark) == address, "the same one first"
    assert len(port.sniffer.probes(address, mark)) == 3
    daemon.wait_line("standby -> probing: no routable address", since=lines)


def test_co_lost_while_it_lingers_gives_nothing_up(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *fallback(0, 60))
    address = bind(port, daemon)
    mark = port.sniffer.mark()
    for _ in range(3):
        lease(port)
        wait_until(lambda: source(port, PEER) == str(STATIC), "the lease as source")
        expire(port)
        wait_until(lambda: source(port, PEER) == str(address), "ours as source")
    assert port.host.link_local(port.name) == [address]
    assert not port.sniffer.probes(address, mark)
    assert "standby" not in daemon.output


def test_another_lease_is_the_source_while_it_lingers(port: Port, make_autoip: MakeDaemon) -> None:
    """The route's source follows: a client that changes its subnet."""
    daemon = make_autoip(port, *fallback(0, 60))
    address = bind(port, daemon)
    lease(port)
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
        """Of new connections to a neighbour by the interface that lingers, and by whichever is right."""
        by = json.loads(host.ip(f"-j route get {NEAR} oif {lingers}"))[0]["prefsrc"]
        return str(by), str(json.loads(host.ip(f"-j route get {PEER}"))[0]["dev"])

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


def test_static_address_that_is_there_first(port: Port, make_autoip: MakeDaemon) -> None:
    lease(port)
    before = configuration(port.host)
    daemon = make_autoip(port, *fallback(0, 60))
    daemon.start()
    assert f"the interface has {STATIC}" in wait_standby(daemon)
    assert port.sniffer.arp(from_host=True) == []
    assert configuration(port.host) == before
    expire(port)
    assert claimed(port) == A


def test_addresses_that_do_not_count(port: Port, make_autoip: MakeDaemon) -> None:
    """169.254 addresses of others, and 127/8, are no reason to go without one."""
    port.host.ip(f"addr add 169.254.99.99/16 dev {port.name} scope link")
    port.host.ip(f"addr add 127.0.5.5/8 dev {port.name}")
    daemon = make_autoip(port, *fallback(0, 0))
    daemon.start()
    assert claimed(port) == A
    assert "standby" not in daemon.output


def test_after_gives_dhcp_its_chance(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *fallback(2, 60))
    daemon.start()
    assert "waits 2 s for a routable address" in wait_standby(daemon)
    lease(port)
    daemon.wait_line("no-link -> standby")
    status = json.loads(_status(daemon))["interfaces"][0]
    assert (status["state"], status["address"], status["policy"]) == ("standby", None, "fallback")
    assert port.sniffer.arp(from_host=True) == []
    expire(port)
    assert claimed(port) == A


def _status(daemon: Daemon) -> str:
    command = [*daemon.command[:3], "status", "--json"]
    process = daemon.namespace.popen(command, env=daemon.env, stdout=-1)
    out, _ = process.communicate(timeout=20)
    return str(out.decode())


def test_after_counts_from_the_link(make_host: Namespace, make_autoip: MakeDaemon) -> None:
    """Before there is a carrier no server could have answered."""
    port: Port = make_host()  # type: ignore[operator]
    port.carrier(False)
    daemon = make_autoip(port, *fallback(2, 60))
    daemon.start()
    daemon.wait_line("waits: no carrier")
    mark = port.sniffer.mark()
    threading.Event().wait(2.5)
    port.carrier(True)
    assert "waits 2 s" in wait_standby(daemon)
    lines = len(daemon.lines)
    port.carrier(False)
    daemon.wait_line("standby -> no-link", since=lines)
    threading.Event().wait(2.5)
    port.carrier(True)
    assert "waits 2 s" in wait_standby(daemon, since=lines)
    assert claimed(port, since=mark) == A


@contextlib.contextmanager
def connection(port: Port, ours: IPv4Address) -> Iterator[socket.socket]:
    """A TCP connection that a neighbour made to `ours`; the neighbour's end."""
    far = port.switch.namespace

    def serve() -> socket.socket:
        listener = socket.create_server((str(ours), 7777))
        listener.settimeout(20)
        return listener

    def connect() -> socket.socket:
        return socket.create_connection((str(ours), 7777), timeout=20)

    with port.host.call(serve) as listener, far.call(connect) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(20)
            yield client
            client.sendall(b"still there")
            assert server.recv(100) == b"still there"


def test_connection_keeps_it_after_the_linger(port: Port, make_autoip: MakeDaemon) -> None:
    """co-lease: kept for what is underway, then released."""
    far = port.switch.namespace
    far.ip(f"addr add {PEER}/16 dev {port.far}")
    daemon = make_autoip(port, *fallback(0, 0.2))
    address = bind(port, daemon)
    with connection(port, address):
        lease(port)
        daemon.wait_line("ours stays 0.2 s longer")
        threading.Event().wait(1.5)
        assert port.host.link_local(port.name) == [address]
        why = json.loads(_status(daemon))["interfaces"][0]["why"]
        assert why == f"the interface has {STATIC}; connections use ours"
    wait_standby(daemon)
    wait_until(lambda: port.host.link_local(port.name) == [], "the release")


def test_connection_over_the_lease_survives_the_release(
    port: Port, make_autoip: MakeDaemon
) -> None:
    far = port.switch.namespace
    far.ip(f"addr add 192.0.2.1/24 dev {port.far}")
    daemon = make_autoip(port, *fallback(0, 0.5))
    bind(port, daemon)
    lease(port)
    with connection(port, STATIC):
        wait_standby(daemon)
        wait_until(lambda: port.host.link_local(port.name) == [], "the release")


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


def test_configuration_file(port: Port, make_autoip: MakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "some.conf"
    file.write_text(f"[eth*]\npolicy = fallback\nafter = 0\ndelay = 50\nip = {A}\nlinger = 0\n")
    daemon = make_autoip(port, "--config", str(file))
    bind(port, daemon)
    lease(port)
    wait_standby(daemon)
    file.write_text("[eth*]\npolicy = fallbak\n")
    refused = make_autoip(port, "--config", str(file))
    refused.start()
    assert refused.wait() == 2
    assert refused.lines == [
        f"autoip: {file}:2: policy fallbak: allowed are alongside, fallback, route-only"
    ]


def test_hook_and_what_it_may_not_start(
    port: Port, make_autoip: MakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "some.conf"
    file.write_text("[eth0]\nhooks = no\n")
    daemon = make_autoip(port, "--hook", "--config", str(file), *FAST)
    daemon.start()
    assert daemon.wait() == 0
    assert len(daemon.lines) == 1
    file.write_text("")
    daemon.start()
    assert claimed(port) == A
    lease(port)
    daemon.wait_line("ours stays 120 s longer")
    twice = make_autoip(port, "--hook", "--config", str(file), *FAST)
    twice.runtime.rmdir()
    twice.env["RUNTIME_DIRECTORY"] = daemon.env["RUNTIME_DIRECTORY"]
    twice.start()
    assert twice.wait() == 3

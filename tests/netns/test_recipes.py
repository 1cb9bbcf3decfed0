"""The recipes of docs/dhcp.md: what each promises, with its own lines and the real programs."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import AddressMonitor, Daemon, Dhclient, Dhcpd, Namespace, NetworkManager, Port, SystemBus
from lab import machine as files
from lab.networkd import NetworkdClient
from tests.require import requires_program
from tools import recipes

from .conftest import MakeHost, autoip_command
from .helpers import NETNS, PATIENCE, PEER, wait_until
from .hooked import routable

pytestmark = [*NETNS, requires_program("ping", "iputils-ping")]

LAN = IPv4Address("192.0.2.5")
ROUTER = IPv4Address("192.0.2.1")
FIXED = IPv4Address("198.51.100.7")

Serve = Callable[..., Daemon]


@pytest.fixture
def serve(stack: contextlib.ExitStack) -> Serve:
    """`serve(port, recipe, *options)`: the service for all interfaces with this file; it runs."""

    def start(port: Port, recipe: str, *options: str) -> Daemon:
        files.give_own_files(port.host)
        files.write(port.host, "/etc/autoip.conf", recipes.text(recipe))
        command = [*autoip_command(), "run", "--configured", "--delay", "50", *options]
        daemon = stack.enter_context(Daemon(port.host, port.name, command))
        daemon.start()
        return daemon

    return start


def way(host: Namespace, destination: IPv4Address | str) -> tuple[str, str]:
    """The interface by which a packet leaves, and its source address."""
    (route,) = json.loads(host.ip(f"-j route get {destination}"))
    return str(route["dev"]), str(route["prefsrc"])


def reach(host: Namespace, destination: IPv4Address | str) -> None:
    """An answer comes from there. Raises LabError."""
    host.run("ping", "-q", "-c", "3", "-i", "0.2", "-W", "2", str(destination), timeout=PATIENCE)


@pytest.fixture
def neighbour(make_host: MakeHost) -> Port:
    """A host on the switch that has a link-local address and nothing else."""
    port = make_host(plugged=True)
    port.host.ip(f"addr add {PEER}/16 dev eth0")
    return port


@dataclass(frozen=True)
class TwoLinks:
    """A host with `eth0` on a LAN with a router, and `second`, its interface eth1, on the test's switch."""

    host: Namespace
    second: Port


@pytest.fixture
def two_links(make_host: MakeHost) -> TwoLinks:
    second = make_host("eth1", plugged=True)
    host = second.host
    lan = second.switch.attach(host, "eth0")
    router = second.switch.attach(make_host().host, "lan0")
    # A cable from the one to the other: the switch is that of eth1 alone.
    switch = second.switch.namespace
    switch.ip("link add name lan type bridge stp_state 0 forward_delay 0")
    switch.ip("link set lan up")
    for port in (lan, router):
        switch.ip(f"link set {port.far} master lan")
    router.host.ip(f"addr add {ROUTER}/24 dev lan0")
    host.ip(f"addr add {LAN}/24 dev eth0")
    host.ip(f"route add default via {ROUTER}")
    return TwoLinks(host, second)


def test_every_recipe_is_tried() -> None:
    tests = Path(__file__).parents[1]
    text = "".join(path.read_text(encoding="utf-8") for path in tests.glob("*/test_*.py"))
    names = recipes.names()
    assert len(names) == len(set(names)) > 5
    assert [name for name in names if not re.search(rf"""["']{name}["']""", text)] == []


@pytest.mark.parametrize("recipe", ["camera", "camera-route"])
def test_camera(two_links: TwoLinks, neighbour: Port, serve: Serve, recipe: str) -> None:
    host, port = two_links.host, two_links.second
    host.ip(f"addr add {FIXED}/24 dev eth1")
    daemon = serve(port, recipe)
    if recipe == "camera":
        address = daemon.wait_address()
        assert way(host, PEER) == ("eth1", str(address))
    else:
        # A camera that asks the link for every address.
        neighbour.host.ip("route add default dev eth0 scope link")
        wait_until(lambda: "169.254.0.0/16" in host.ip("route"), "the route")
        assert way(host, PEER) == ("eth1", str(FIXED))
        assert host.link_local("eth1") == []
    reach(host, PEER)
    assert routable(port) == [FIXED]
    assert way(host, "8.8.8.8") == ("eth0", str(LAN))
    assert way(host, FIXED + 1) == ("eth1", str(FIXED))


def test_audio(two_links: TwoLinks, neighbour: Port, serve: Serve) -> None:
    host, port = two_links.host, two_links.second
    daemon = serve(port, "audio", "--linger", "0")
    daemon.wait_line("waits 3 s for a routable address")
    address = daemon.wait_address()
    reach(host, PEER)
    reach(neighbour.host, address)
    assert way(host, PEER) == ("eth1", str(address))
    assert way(host, "8.8.8.8") == ("eth0", str(LAN))
    reach(host, ROUTER)
    # What the page says of multicast: first it is the LAN's.
    group = "239.69.1.1"
    assert way(host, group)[0] == "eth0"
    host.run(*shlex.split(recipes.text("multicast")))
    assert way(host, group) == ("eth1", str(address))
    # A lease takes the address's place.
    host.ip(f"addr add {FIXED}/24 dev eth1")
    daemon.wait_no_address()


def test_instruments(make_host: MakeHost, serve: Serve) -> None:
    """The first has the address of its label; the second finds that taken, and has another."""
    first = make_host(plugged=True, mac="02:00:00:00:15:09")
    second = make_host(plugged=True, mac="02:00:00:01:15:09")
    label = IPv4Address("169.254.21.9")
    daemon = serve(first, "instrument", "--after", "0", "--linger", "0")
    assert daemon.wait_address() == label
    other = serve(second, "instrument", "--after", "0").wait_address()
    assert other != label
    reach(second.host, label)
    reach(first.host, other)
    first.host.ip(f"addr add {FIXED}/24 dev eth0")
    daemon.wait_no_address()


@pytest.fixture
def server(make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
    """Not started yet."""
    return stack.enter_context(Dhcpd(make_host("srv0", plugged=True)))


@requires_program("dhclient", "isc-dhcp-client")
def test_home(
    make_host: MakeHost, neighbour: Port, server: Dhcpd, serve: Serve, stack: contextlib.ExitStack
) -> None:
    port = make_host(plugged=True)
    daemon = serve(port, "home")
    client = stack.enter_context(Dhclient(port))
    server.start()
    client.start()
    lease = client.wait_bound()
    address = daemon.wait_address()
    assert way(port.host, PEER) == ("eth0", str(address))
    reach(port.host, PEER)
    reach(neighbour.host, address)
    assert way(port.host, "8.8.8.8") == ("eth0", str(lease))
    reach(port.host, server.address)
    assert routable(port) == [lease]


@requires_program("networkd-dispatcher", "networkd-dispatcher")
def test_bmc(make_host: MakeHost, server: Dhcpd, serve: Serve, stack: contextlib.ExitStack) -> None:
    """One address at a time, with systemd-networkd and without hooks."""
    port = make_host(plugged=True)
    daemon = serve(port, "bmc", "--after", "1")
    client = stack.enter_context(NetworkdClient(port))
    client.start()
    address = daemon.wait_address()
    assert routable(port) == []
    since = port.sniffer.mark()
    server.start()
    wait_until(lambda: routable(port), "a lease", 60)
    daemon.wait_no_address()
    assert len(routable(port)) == 1
    assert port.sniffer.probes(address, since) == []


def test_gadget(make_host: MakeHost, serve: Serve) -> None:
    """Plugged in, out and in again; nobody but the service sets it up."""
    port = make_host("usb0", up=False, plugged=True)
    other = make_host(plugged=True)
    other.host.ip(f"addr add {PEER}/16 dev eth0")
    daemon = serve(port, "gadget")
    address = daemon.wait_address()
    reach(other.host, address)
    port.delete()
    daemon.wait_line("usb0: .* -> no-link")
    port.create(up=False)
    port.plug()
    assert daemon.wait_address() == address
    reach(other.host, address)


@dataclass(frozen=True)
class Managed:
    """A host whose eth0 is NetworkManager's."""

    port: Port
    bus: SystemBus
    manager: NetworkManager

    def start(self) -> None:
        self.bus.start()
        self.manager.start()
        self.manager.wait_state("eth0", 30)


@pytest.fixture
def make_managed(make_host: MakeHost, stack: contextlib.ExitStack) -> Callable[[], Managed]:
    def make() -> Managed:
        port = make_host(plugged=True)
        files.give_own_files(port.host)
        bus = stack.enter_context(SystemBus(port.host))
        return Managed(port, bus, stack.enter_context(NetworkManager(port.host)))

    return make


GIVES_UP = 4
"""Seconds after which NetworkManager gives DHCP up here, in the place of 45."""


@requires_program("NetworkManager", "network-manager")
@requires_program("dbus-daemon", "dbus")
def test_a_pi_and_a_laptop(
    make_managed: Callable[[], Managed], stack: contextlib.ExitStack
) -> None:
    """And the symptom: without the recipe the Pi's address would go when DHCP fails, again and again."""
    pi, laptop = make_managed(), make_managed()
    files.write(
        pi.port.host,
        "/etc/NetworkManager/conf.d/10-lab.conf",
        f"[connection-lab]\nipv4.dhcp-timeout={GIVES_UP}\n",
    )
    pi.start()
    words = shlex.split(recipes.text("pi"))
    assert words[0] == "autoip"
    pi.port.host.run(*autoip_command(), *words[1:], "--client", "networkmanager")
    # The service that this has enabled, and would have started.
    command = [*autoip_command(), "run", "eth0", "--after", "1", "--delay", "50"]
    daemon = stack.enter_context(Daemon(pi.port.host, "eth0", command))
    del daemon.env["RUNTIME_DIRECTORY"]
    daemon.start()
    began = time.monotonic()
    pi.manager.add_profile("eth0", ipv6__method="disabled")
    address = daemon.wait_address(60)
    monitor = stack.enter_context(AddressMonitor(pi.port.host))

    laptop.start()
    laptop.manager.nmcli(recipes.text("laptop").removeprefix("nmcli "))
    laptop.manager.wait_state("eth0", 100)
    (elsewhere,) = laptop.port.host.link_local("eth0")
    reach(laptop.port.host, address)
    reach(pi.port.host, elsewhere)
    time.sleep(max(0.0, began + 2 * GIVES_UP - time.monotonic()))
    assert [event for event in monitor.events() if not event[1]] == []
    assert pi.manager.device_state("eth0") == 70

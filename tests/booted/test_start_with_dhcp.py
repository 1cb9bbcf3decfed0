"""Debian 13 starts with a DHCP client and autoip's hooks: without a server, with a late one, with one, and its cable.

The tests of one client are the events of its machine's life, in their order; each can also run alone.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from lab import ArpFrame, Dhcpd, Namespace, Sniffer, Switch
from lab.booted import Booted
from tests.netns.helpers import wait_until
from tests.require import requires_program
from tools import recipes

from .helpers import (
    BOOTED,
    DEBIANS,
    DHCP_SERVICES,
    PATIENCE,
    addresses,
    as_new,
    mask,
    wait_bound,
    wait_show,
)

pytestmark = [
    *BOOTED,
    requires_program("dhcpd", "isc-dhcp-server"),
    pytest.mark.parametrize("machine", DEBIANS[:1], indirect=True),
]

LINGER = 2
PEER = IPv4Address("169.254.77.77")
LEASE = 100.0
"""Seconds until a client has a lease: a client's questions are up to a minute apart."""


@dataclass(frozen=True)
class Way:
    """A DHCP client.

    Attributes:
        name: of the test.
        units: services of the client, which start at each boot.
        files: what the client's user has written.
        command: the line of docs/dhcp.md that installs the hooks.
        gives_up: whether the client gives its lease up when the cable is out.
    """

    name: str
    units: tuple[str, ...]
    files: Mapping[str, str]
    command: str
    gives_up: bool


INTERFACES = "auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet dhcp\n"
NETWORK = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n"
IFUPDOWN = Way(
    "ifupdown",
    ("networking",),
    {"/etc/network/interfaces": INTERFACES},
    "autoip hooks install",
    gives_up=False,
)
MANAGER = Way("networkmanager", ("NetworkManager",), {}, "autoip hooks install eth0", gives_up=True)
NETWORKD = Way(
    "networkd",
    ("systemd-networkd", "networkd-dispatcher"),
    {"/etc/systemd/network/eth0.network": NETWORK},
    "autoip hooks install",
    gives_up=True,
)


class Site:
    """The machine on a switch, with a host that has a link-local address and that serves DHCP at times."""

    way = IFUPDOWN

    def __init__(self, guest: Booted, stack: contextlib.ExitStack) -> None:
        self.guest = guest
        switch = stack.enter_context(Switch(guest.lan))
        guest.bridge = switch.bridge()
        stack.callback(setattr, guest, "bridge", "")
        self.peer = stack.enter_context(Namespace("peer"))
        port = switch.attach(self.peer, plugged=True)
        self.peer.ip(f"addr add {PEER}/16 dev {port.name}")
        self.server = stack.enter_context(Dhcpd(port))
        self.wire = stack.enter_context(Sniffer(guest.lan, guest.bridge))

    def install(self) -> None:
        """Give the machine the client and the hooks, and switch it off."""
        self.guest.run(
            "rm", "-f", *(f"/etc/systemd/system/{unit}.service" for unit in DHCP_SERVICES)
        )
        mask(self.guest, *(unit for unit in DHCP_SERVICES if unit not in self.way.units))
        for path, text in self.way.files.items():
            self.guest.write(path, text)
        self.configure(f"{recipes.text('soon')}linger = {LINGER}\n")
        self.guest.run("systemctl", "daemon-reload")
        self.guest.run("systemctl", "enable", "--now", *self.way.units)
        self.guest.run("sh", "-ec", self.way.command)
        self.guest.power_off()

    def remove(self) -> None:
        """Take the client and the hooks away; nothing of either runs."""
        as_new(self.guest)
        self.guest.run("autoip", "hooks", "remove")
        # While dhclient asks in vain, ifdown waits for ifup.
        self.guest.run("systemctl", "kill", "--signal=KILL", "ifup@eth0", check=False)
        self.guest.run("systemctl", "stop", "ifup@eth0")
        self.guest.run("systemctl", "disable", "-q", "--now", *self.way.units)
        self.guest.run("rm", "-f", *self.way.files)
        mask(self.guest, *DHCP_SERVICES)
        self.guest.run("systemctl", "daemon-reload")

    def configure(self, text: str) -> None:
        self.guest.write("/etc/autoip.conf", text)

    # Its life

    def alone(self) -> IPv4Address:
        """Have it on where no server is; return its link-local address."""
        if self.server.running:
            self.server.stop()
            self.guest.power_off()
        if not self.guest.running:
            self.guest.boot()
        return wait_bound(self.guest)

    def lease(self) -> IPv4Address:
        """Wait until it has a lease; return its address."""
        until(lambda: len(routable(self.guest)) == 1, "a lease", LEASE)
        return routable(self.guest)[0]

    def claims(self, since: int) -> list[ArpFrame]:
        """Probes and announcements for a link-local address since a mark of `wire`."""
        frames = self.wire.probes(since=since) + self.wire.announcements(since=since)
        return [frame for frame in frames if frame.tpa.is_link_local]


class Session:
    """A TCP connection from a host to the machine's echo service."""

    def __init__(self, host: Namespace, address: IPv4Address) -> None:
        self._socket = host.call(socket.create_connection, (str(address), 7), PATIENCE)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def alive(self) -> None:
        """Check that something goes there and comes back."""
        self._socket.sendall(b"x")
        assert self._socket.recv(1) == b"x"


def routable(guest: Booted) -> list[IPv4Address]:
    text = guest.run("ip", "-4", "-o", "addr", "show", "dev", "eth0")
    found = [IPv4Address(word) for word in re.findall(r"inet ([0-9.]+)/", text)]
    return [address for address in found if not address.is_link_local]


def until(true: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
    """Wait until `true()`, which starts a program in the machine. Raises LabError."""
    wait_until(true, what, limit, pause=0.1)


@pytest.fixture(scope="module")
def empty_site(machine: Booted) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(machine, stack)


@pytest.fixture(scope="module", params=[IFUPDOWN, MANAGER, NETWORKD], ids=lambda way: way.name)
def site(empty_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The client and the hooks are installed as docs/dhcp.md says; the machine is off, and the server does not run."""
    site = empty_site
    site.way = request.param
    if site.server.running:
        site.server.stop()
    as_new(site.guest)
    try:
        site.install()
        yield site
    finally:
        site.remove()


def test_cold_boot_without_a_server(site: Site) -> None:
    since = site.wire.mark()
    address = site.alone()
    assert len(site.wire.probes(address, since)) == 3
    site.wire.wait_count(lambda f: f.is_announcement and f.spa == address, 2, PATIENCE, since=since)
    assert len(site.wire.announcements(address, since)) == 2
    assert routable(site.guest) == []


def test_a_server_appears_later(site: Site) -> None:
    """A connection over the link-local address goes on beside the lease; with it goes the address."""
    address = site.alone()
    echo = ["systemd-socket-activate", "--accept", "--inetd", "-l", "7", "cat"]
    site.guest.run("systemd-run", "-q", "--unit=needs-echo", *echo)
    until(lambda: ":7 " in site.guest.run("ss", "-Hltn"), "the echo service")
    since = site.wire.mark()
    with Session(site.peer, address) as session:
        session.alive()
        site.server.start()
        lease = site.lease()
        wait_show(site.guest, "autoip@eth0", "StatusText", r".*connections use ours.*")
        session.alive()
        assert addresses(site.guest) == [address]
        way = f"default via {site.server.address}"
        until(lambda: way in site.guest.run("ip", "route"), "the lease's default route")
    until(lambda: addresses(site.guest) == [], "the lease alone")
    assert routable(site.guest) == [lease]
    assert site.claims(since) == []


def test_reboot_with_the_server(site: Site) -> None:
    """There is a lease, and never a link-local address. By the default `after`, as the lease must be faster."""
    if not site.server.running:
        site.server.start()
    if not site.guest.running:
        site.guest.boot()
    site.configure("[*]\ndelay = 200\n")
    site.guest.power_off()
    since = site.wire.mark()
    site.guest.boot()
    lease = site.lease()
    wait_show(
        site.guest, "autoip@eth0", "StatusText", rf"eth0: standby \(.*{re.escape(str(lease))}.*"
    )
    assert site.claims(since) == []


def test_cable_out_and_in(site: Site) -> None:
    """The same lease again, and no link-local address."""
    site.configure("[*]\ndelay = 200\n")
    if not site.server.running:
        site.server.start()
    if not site.guest.running:
        site.guest.boot()
    lease = site.lease()
    since = site.wire.mark()
    site.guest.cable(False)
    wait_show(site.guest, "autoip@eth0", "StatusText", r"eth0: no-link \(.*")
    if site.way.gives_up:
        until(lambda: routable(site.guest) == [], "the lease given up")
    site.guest.cable(True)
    assert site.lease() == lease
    wait_show(
        site.guest, "autoip@eth0", "StatusText", rf"eth0: standby \(.*{re.escape(str(lease))}.*"
    )
    assert site.claims(since) == []

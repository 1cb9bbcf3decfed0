"""ifupdown with our scripts, and with dhclient below it: the real programs."""

from __future__ import annotations

import contextlib

import pytest

from lab import Dhcpd, Port, machine
from tests.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS, wait_until
from .hooked import LINGER, Hooked, MakeHooked, routable

pytestmark = [
    *NETNS,
    requires_program("ifup", "ifupdown"),
    requires_program("dhclient", "isc-dhcp-client"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

DHCLIENT_CONF = (
    "timeout 2;\nretry 2;\ninitial-interval 1;\nbackoff-cutoff 1;\nselect-timeout 0;\n"
    "request subnet-mask, broadcast-address, routers, domain-name-servers;\n"
)


@pytest.fixture
def port(make_host: MakeHost) -> Port:
    return make_host(plugged=True, up=False)


@pytest.fixture
def host(port: Port, make_hooked: MakeHooked) -> Hooked:
    made = make_hooked(port.host)
    machine.write(port.host, "/etc/dhcp/dhclient.conf", DHCLIENT_CONF)
    machine.write(port.host, "/etc/network/interfaces", "auto lo\niface lo inet loopback\n")
    made.install("--client", "ifupdown", "--client", "dhclient")
    return made


@pytest.fixture
def server(make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
    return stack.enter_context(Dhcpd(make_host(plugged=True)))


def configure(port: Port, *lines: str, name: str = "eth0") -> None:
    text = machine.read(port.host, "/etc/network/interfaces")
    stanza = "\n    ".join(lines)
    machine.write(
        port.host, "/etc/network/interfaces", f"{text}\nauto {name}\niface {name} {stanza}\n"
    )


def ifup(port: Port, *words: str) -> None:
    """It returns, with 0, whatever DHCP gave: dhclient goes on in the background."""
    port.host.run("ifup", *words, timeout=60)


@pytest.mark.parametrize("clients", [("ifupdown",), ("ifupdown", "dhclient")], ids="-".join)
def test_no_server_then_down(port: Port, host: Hooked, clients: tuple[str, ...]) -> None:
    """dhclient calls no hook at `ifdown` after a failure: our own script it is."""
    if "dhclient" not in clients:
        host.hooks("remove", "--client", "dhclient")
    configure(port, "inet dhcp")
    ifup(port, "eth0")
    host.wait_address(port)
    port.host.run("ifdown", "eth0", timeout=60)
    host.wait_ended("eth0")
    assert port.host.addresses("eth0") == []
    # However many hooks there are.
    assert host.starts() == ["run --hook --early eth0"]
    assert host.complaints() == []
    ifup(port, "eth0")
    host.wait_address(port)
    assert len(host.daemons("eth0")) == 1


def test_a_server_appears(port: Port, host: Hooked, server: Dhcpd) -> None:
    configure(port, "inet dhcp")
    ifup(port, "eth0")
    address = host.wait_address(port)
    server.start()
    wait_until(lambda: routable(port), "a lease")
    assert port.host.link_local("eth0") == [address]
    host.wait_no_address(port, LINGER + 60)
    assert routable(port) == [server.leases()[port.mac]]
    port.host.run("ifdown", "eth0", timeout=60)
    host.wait_ended("eth0")
    assert port.host.addresses("eth0") == []
    assert port.host.ip("route show table all dev eth0") == ""
    assert host.complaints() == []


def test_a_server_from_the_start(port: Port, host: Hooked, server: Dhcpd) -> None:
    """The daemon waits beside the lease, and there is nothing of it to be seen."""
    server.start()
    configure(port, "inet dhcp")
    since = port.sniffer.mark()
    ifup(port, "eth0")
    host.wait_state("eth0", "standby")
    assert routable(port) == [server.leases()[port.mac]]
    assert port.host.link_local("eth0") == []
    assert [frame for frame in port.sniffer.arp(since) if frame.is_probe] == []
    port.host.run("ifdown", "eth0", timeout=60)
    host.wait_ended("eth0")
    assert host.complaints() == []


def test_what_is_no_dhcp_interface_is_left_alone(
    make_host: MakeHost, port: Port, host: Hooked
) -> None:
    port.switch.attach(port.host, "eth1", up=False)
    port.switch.attach(port.host, "eth2", up=False)
    configure(port, "inet dhcp")
    configure(port, "inet static", "address 192.0.2.7/24", name="eth1")
    configure(port, "inet manual", "up ip link set eth2 up", name="eth2")
    ifup(port, "-a")
    host.wait_address(port)
    port.host.run("ifdown", "-a", timeout=60)
    host.wait_ended("eth0")
    assert host.starts() == ["run --hook --early eth0"]
    assert host.complaints() == []


def test_an_interface_comes_up_whatever_is_broken(port: Port, host: Hooked) -> None:
    configure(port, "inet dhcp")
    host.program.unlink()
    ifup(port, "eth0")
    host.syslog.wait_line("hook: eth0: .* cannot be run")
    machine.write(port.host, "/etc/autoip/hook", "#!/nowhere\n", 0o755)
    port.host.run("ifdown", "eth0", timeout=60)
    port.host.run("rm", "/etc/autoip/hook")
    ifup(port, "eth0")
    port.host.run("ifdown", "eth0", timeout=60)

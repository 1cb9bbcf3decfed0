"""dhclient with our exit hook: the real programs on both sides of the cable."""

from __future__ import annotations

import contextlib
import signal
from ipaddress import IPv4Address
from typing import ClassVar

import pytest

from lab import Dhclient, Dhcpd, Namespace, Port, machine
from lab.client import Client
from tests.require import requires_program

from .conftest import MakeHost
from .fallback import MakesRoom, calls
from .helpers import NETNS, wait_until
from .hooked import CONFIG, LINGER, Hooked, MakeHooked, routable

pytestmark = [
    *NETNS,
    requires_program("dhclient", "isc-dhcp-client"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

LEASE = 9
"""Seconds, where a lease is to run out."""


class TestDhclient(MakesRoom):
    kind = Dhclient
    name = "dhclient"
    bound = "BOUND"
    renewed = "RENEW"
    words = "run --hook --early"
    lease = LEASE
    events: ClassVar = {
        "FAIL": ["start eth0"],
        "TIMEOUT": ["start eth0"],
        "EXPIRE": ["start eth0"],
        "RELEASE": ["stop eth0"],
        "STOP": ["stop eth0"],
        "PREINIT": ["early eth0"],
        "BOUND": [],
        "RENEW": [],
        "": [],
    }

    def give_up(self, client: Client) -> None:
        assert isinstance(client, Dhclient)
        client.ask("-r")

    def called(self, port: Port, words: str) -> list[str]:
        # It is read by dhclient-script, whose output is dhclient's.
        env = {"interface": "eth0", "reason": words}
        script = ". /etc/dhcp/dhclient-exit-hooks.d/autoip >/run/said 2>&1"
        return calls(port, "sh", "-c", script, env=env)


@pytest.fixture
def port(make_host: MakeHost) -> Port:
    return make_host(plugged=True)


@pytest.fixture
def host(port: Port, make_hooked: MakeHooked) -> Hooked:
    made = make_hooked(port.host)
    made.install("--client", "dhclient")
    return made


@pytest.fixture
def client(port: Port, host: Hooked, stack: contextlib.ExitStack) -> Dhclient:
    return stack.enter_context(Dhclient(port))


@pytest.fixture
def server(make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
    return stack.enter_context(Dhcpd(make_host(plugged=True)))


def failed(client: Dhclient, host: Hooked, port: Port) -> IPv4Address:
    """Starts the client where nobody answers it; the address that the interface gets."""
    client.start()
    client.wait_reason("FAIL")
    return host.wait_address(port)


def default_route(host: Namespace) -> str:
    return host.ip("route show default")


@pytest.mark.parametrize("killed", [False, True])
def test_another_subnet(
    port: Port,
    host: Hooked,
    client: Dhclient,
    make_host: MakeHost,
    stack: contextlib.ExitStack,
    killed: bool,
) -> None:
    """The old server's default route is gone, the new one's is there: with an address of ours all along.

    That would keep the old route, and the old route keeps the new one away. Of a dhclient that is killed no hook runs.
    """
    machine.write(port.host, "/etc/autoip.conf", CONFIG.replace(f"{LINGER}", "600"))
    one = stack.enter_context(Dhcpd(make_host(plugged=True), lease=LEASE))
    two = stack.enter_context(Dhcpd(make_host(plugged=True), network="10.88.0.0/24"))
    address = failed(client, host, port)
    one.start()
    lease = client.wait_bound()
    assert default_route(port.host).startswith(f"default via {one.address} ")
    one.stop()
    if killed:
        client.kill()
        port.host.ip(f"addr del {lease}/24 dev eth0")
        wait_until(lambda: default_route(port.host) == "", "the old default route to go")
    else:
        client.wait_reason("EXPIRE")
    assert port.host.link_local("eth0") == [address]
    assert default_route(port.host) == ""
    since = len(client.lines)
    two.start()
    if killed:
        client.start()
    assert client.wait_bound(since=since) in two.network
    assert default_route(port.host).split()[:3] == ["default", "via", str(two.address)]
    assert len(port.host.ip("route show default").splitlines()) == 1
    assert port.host.link_local("eth0") == [address]
    assert host.complaints() == []


@pytest.mark.parametrize("router", ["answers", "is gone"])
def test_a_lease_of_another_time(
    port: Port, host: Hooked, client: Dhclient, server: Dhcpd, router: str
) -> None:
    """dhclient finds no server but a lease in its file, and asks that lease's router: TIMEOUT."""
    server.start()
    client.start()
    lease = client.wait_bound()
    server.stop()
    client.kill()
    port.host.ip("addr flush dev eth0")
    if router == "is gone":
        server.namespace.ip("addr flush dev eth0")
    since = port.sniffer.mark()
    seen = len(client.reasons())
    client.start()
    client.wait_reason("TIMEOUT", since=seen)
    if router == "answers":
        host.wait_state("eth0", "standby")
        assert routable(port) == [lease]
        assert [f for f in port.sniffer.arp(since) if f.is_probe and f.tpa != lease] == []
    else:
        client.wait_reason("FAIL", since=seen)
        # The script has flushed the interface: what was there by then is claimed again.
        host.wait_address(port)
        host.wait_state("eth0", "bound")
        assert len(port.host.link_local("eth0")) == 1
        assert routable(port) == []
    assert host.starts() == ["run --hook --early eth0"]
    assert host.complaints() == []


@pytest.mark.parametrize("config", ["", "after = 3\ndelay = 200\n"], ids=["defaults", "soon"])
def test_an_address_long_before_dhclient_gives_up(
    port: Port, host: Hooked, stack: contextlib.ExitStack, config: str
) -> None:
    """After `after` seconds, though dhclient reports a failure only after its default time-out."""
    machine.write(port.host, "/etc/autoip.conf", f"[*]\n{config}")
    client = stack.enter_context(Dhclient(port, timeout=60))
    client.start()
    start = client.wait_reason("PREINIT")
    probe = port.sniffer.wait_probe(timeout=60)
    assert (probe.ns - start) / 1e9 >= (3 if config else 10)
    assert host.wait_address(port) == probe.tpa
    assert client.reasons() == ["PREINIT"]
    assert host.starts() == ["run --hook --early eth0"]
    assert host.complaints() == []


def test_list_has_what_would_happen(port: Port, host: Hooked, client: Dhclient) -> None:
    def outlook() -> str:
        (row,) = [line for line in host.hooks("list").splitlines() if line.startswith("eth0 ")]
        return row.partition(" ")[2].strip()

    assert outlook() == "nothing: no DHCP client serves it"
    client.start()
    host.wait_address(port)
    assert outlook() == "autoip, which serves it already, claims an address"
    host.hooks("remove")
    host.wait_ended("eth0")
    says = "nothing: hooks of dhclient: no: autoip hooks install --client dhclient"
    assert outlook() == says
    client.signal(signal.SIGSTOP)  # its next failure would start a daemon
    machine.write(port.host, "/etc/autoip.conf", "[*]\nhooks = no\n")
    host.install("--client", "dhclient")
    assert outlook() == "nothing: the configuration says hooks = no, or does not name it"
    machine.write(port.host, "/etc/autoip.conf", "")
    assert outlook() == "the hook of dhclient has autoip claim an address"
    client.signal(signal.SIGCONT)


def test_a_failure_ends_the_waiting(port: Port, host: Hooked, client: Dhclient) -> None:
    machine.write(port.host, "/etc/autoip.conf", "[*]\nafter = 600\ndelay = 100\n")
    client.start()
    failed = client.wait_reason("FAIL")
    host.wait_address(port)
    assert all(frame.ns > failed for frame in port.sniffer.probes())
    assert host.starts() == ["run --hook --early eth0"]


def test_a_lease_that_is_over_is_a_failure(
    port: Port, host: Hooked, server: Dhcpd, client: Dhclient
) -> None:
    """EXPIRE and PREINIT come 10 ms apart, and none runs: the one is `start`, which the other does not replace."""
    machine.write(port.host, "/etc/autoip.conf", "[*]\nafter = 600\ndelay = 100\n")
    server.set_lease(LEASE)
    server.start()
    client.start()
    client.wait_bound()
    host.wait_state("eth0", "standby")
    host.autoip("stop", "eth0")
    host.wait_ended("eth0")
    server.stop()
    client.wait_reason("EXPIRE")
    host.wait_address(port)
    assert host.starts() == ["run --hook --early eth0", "run --hook eth0"]


# --- connections --------------------------------------------------------------------------------


# --- whatever is broken on our side ------------------------------------------------------------------


def test_nothing_leaks_into_the_script_of_the_client(port: Port, host: Hooked) -> None:
    """dhclient-script reads the hook: its variables, options and end are the script's own."""
    machine.write(port.host, "/etc/autoip/hook", "#!/bin/sh\nexit 7\n", 0o755)
    reasons = ("PREINIT", "BOUND", "RENEW", "FAIL", "TIMEOUT", "EXPIRE", "RELEASE", "STOP", "")
    for reason in reasons:
        out = port.host.run(
            "dash",
            "-c",
            f"reason={reason}; interface=eth0; old_routers='10.0.0.1 10.0.0.2'\n"
            "set >/run/one; echo $- >>/run/one; trap >>/run/one; umask >>/run/one\n"
            ". /etc/dhcp/dhclient-exit-hooks.d/autoip\n"
            "echo $? >/run/status\n"
            "set >/run/two; echo $- >>/run/two; trap >>/run/two; umask >>/run/two\n"
            "cmp /run/one /run/two && cat /run/status && echo end\n",
        )
        assert out == "0\nend\n", reason

"""dhclient with our exit hook: the real programs on both sides of the cable."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from ipaddress import IPv4Address

import pytest

from lab import Dhclient, Dhcpd, Namespace, Port, machine
from tests.require import requires_program

from .conftest import MakeHost
from .helpers import NETNS, PEER, wait_until
from .hooked import CONFIG, LINGER, Hooked, MakeHooked, routable
from .talk import Talk

pytestmark = [
    *NETNS,
    requires_program("dhclient", "isc-dhcp-client"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

LEASE = 9
"""Seconds, where a lease is to run out."""


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


@pytest.mark.parametrize("name", ["eth0", "fifteen-letters"])
@pytest.mark.parametrize(("option", "reason"), [("-r", "RELEASE"), ("-x", "STOP")])
def test_no_server_then_a_lease_then_the_end(
    make_host: MakeHost,
    make_hooked: MakeHooked,
    server: Dhcpd,
    stack: contextlib.ExitStack,
    name: str,
    option: str,
    reason: str,
) -> None:
    port = make_host(name, plugged=True)
    host = make_hooked(port.host)
    host.install("--client", "dhclient")
    client = stack.enter_context(Dhclient(port))
    address = failed(client, host, port)
    # It fails again and again: nothing new is started.
    client.wait_reason("FAIL", since=len(client.reasons()))
    assert host.starts() == [f"run --hook {name}"]
    assert port.host.link_local(name) == [address]

    server.start()
    lease = client.wait_bound()
    assert routable(port) == [lease]
    assert port.host.link_local(name) == [address]
    assert default_route(port.host).startswith(f"default via {server.address} dev {name}")
    host.wait_no_address(port, LINGER + 60)
    assert routable(port) == [lease]
    host.wait_state(name, "standby")

    client.ask(option)
    assert client.reasons()[-1] == reason
    host.wait_ended(name)
    assert port.host.addresses(name) == []
    assert port.host.ip(f"route show table all dev {name}") == ""
    assert host.complaints() == []


def test_renewals_then_expiry_then_a_lease_again(
    port: Port, host: Hooked, make_host: MakeHost, stack: contextlib.ExitStack
) -> None:
    client = stack.enter_context(Dhclient(port, timeout=60))
    server = stack.enter_context(Dhcpd(make_host(plugged=True), lease=LEASE))
    server.start()
    client.start()
    lease = client.wait_bound()
    client.wait_reason("RENEW")
    client.wait_reason("RENEW", since=len(client.reasons()))
    # All is well: there is not even a daemon.
    assert host.starts() == []
    route = default_route(port.host)
    assert route.startswith(f"default via {server.address} ")

    server.stop()
    client.wait_reason("EXPIRE")
    address = host.wait_address(port)
    wait_until(lambda: not routable(port), "the lease is off")
    assert default_route(port.host) == ""
    # The expiry was enough: dhclient has not failed to get another one so far.
    assert "FAIL" not in client.reasons()

    lines = len(client.lines)
    server.start()
    assert client.wait_bound(since=lines) == lease
    assert default_route(port.host) == route
    assert port.host.link_local("eth0") == [address]
    host.wait_no_address(port, LINGER + 60)
    # Renewals leave a daemon that waits alone.
    since = port.sniffer.mark()
    client.wait_reason("RENEW", since=len(client.reasons()))
    client.wait_reason("RENEW", since=len(client.reasons()))
    assert [f for f in port.sniffer.arp(since) if f.spa == address or f.is_probe] == []
    assert port.host.link_local("eth0") == []
    assert host.state("eth0") == "standby"
    assert host.starts() == ["run --hook eth0"]
    assert host.complaints() == []


def test_another_subnet(
    port: Port, host: Hooked, client: Dhclient, make_host: MakeHost, stack: contextlib.ExitStack
) -> None:
    """The old server's default route is gone, the new one's is there: with an address of ours all along.

    That would keep the old route, and the old route keeps the new one away.
    """
    machine.write(port.host, "/etc/autoip.conf", CONFIG.replace(f"{LINGER}", "600"))
    one = stack.enter_context(Dhcpd(make_host(plugged=True), lease=LEASE))
    two = stack.enter_context(Dhcpd(make_host(plugged=True), network="10.88.0.0/24"))
    address = failed(client, host, port)
    one.start()
    client.wait_bound()
    assert default_route(port.host).startswith(f"default via {one.address} ")
    one.stop()
    client.wait_reason("EXPIRE")
    assert port.host.link_local("eth0") == [address]
    assert default_route(port.host) == ""
    since = len(client.lines)
    two.start()
    assert client.wait_bound(since=since) in two.network
    assert default_route(port.host).split()[:3] == ["default", "via", str(two.address)]
    assert len(port.host.ip("route show default").splitlines()) == 1
    assert port.host.link_local("eth0") == [address]
    assert host.complaints() == []


def test_the_client_is_undisturbed(
    make_host: MakeHost,
    make_hooked: MakeHooked,
    server: Dhcpd,
    stack: contextlib.ExitStack,
) -> None:
    """Two hosts, one without autoip: what the client does and leaves is the same but for our address."""
    ports = [make_host(plugged=True) for _ in range(2)]
    hosts = [make_hooked(port.host) for port in ports]
    hosts[0].install("--client", "dhclient")
    clients = [stack.enter_context(Dhclient(port)) for port in ports]

    def seen(port: Port, client: Dhclient) -> dict[str, object]:
        (mine,) = map(str, routable(port))
        routes = port.host.ip("route show").replace(mine, "MINE").splitlines()
        return {
            "routes": [line for line in routes if not line.startswith("169.254.0.0/16")],
            "resolv.conf": machine.read(port.host, "/etc/resolv.conf"),
            "leases": client.leases(),
            "reasons": [reason for reason in client.reasons() if reason != "FAIL"],
            "address": re.sub(
                r"(valid|preferred)_lft \d+sec",
                "",
                port.host.ip("-4 addr show dev eth0 label eth0").replace(mine, "MINE"),
            ).partition("inet")[2],
        }

    for client in clients:
        client.start()
    for client in clients:
        client.wait_reason("FAIL")
    hosts[0].wait_address(ports[0])
    assert ports[1].host.addresses("eth0") == []
    server.start()
    for client in clients:
        client.wait_bound()
        client.wait_reason("BOUND")
    beside, alone = (seen(*pair) for pair in zip(ports, clients, strict=True))
    assert beside == alone
    assert f"nameserver {server.address}" in str(alone["resolv.conf"])
    hosts[0].wait_no_address(ports[0], LINGER + 60)
    beside, alone = (seen(*pair) for pair in zip(ports, clients, strict=True))
    assert beside == alone

    for client in clients:
        client.ask("-r")
    hosts[0].wait_ended("eth0")
    for port, client in zip(ports, clients, strict=True):
        assert port.host.ip("route show table all dev eth0") == ""
        assert client.reasons()[-1] == "RELEASE"
    assert clients[0].leases() == clients[1].leases()


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
        host.wait_state("eth0", "bound")
        assert len(port.host.link_local("eth0")) == 1
        assert routable(port) == []
    assert host.starts() == ["run --hook eth0"]
    assert host.complaints() == []


def test_the_carrier_is_lost(port: Port, host: Hooked, client: Dhclient, server: Dhcpd) -> None:
    address = failed(client, host, port)
    port.carrier(False)
    host.wait_no_address(port)
    assert host.state("eth0") == "no-link"
    since = port.sniffer.mark()
    port.carrier(True)
    port.sniffer.wait_announcement(address, 60, since=since)
    assert port.host.link_local("eth0") == [address]

    server.start()
    lease = client.wait_bound()
    host.wait_no_address(port, LINGER + 60)
    # dhclient keeps its lease, so there is nothing to fall back from.
    since = port.sniffer.mark()
    port.carrier(False)
    port.carrier(True)
    port.host.run("ping", "-c", "1", "-W", "20", str(server.address), timeout=30)
    assert routable(port) == [lease]
    assert port.host.link_local("eth0") == []
    assert [f for f in port.sniffer.arp(since) if f.is_probe and f.tpa == address] == []
    assert host.starts() == ["run --hook eth0"]


def test_the_client_is_killed(
    port: Port, host: Hooked, client: Dhclient, make_host: MakeHost, stack: contextlib.ExitStack
) -> None:
    """No hook is called, the kernel takes the address off: the daemon sees that."""
    server = stack.enter_context(Dhcpd(make_host(plugged=True), lease=LEASE))
    address = failed(client, host, port)
    server.start()
    client.wait_bound()
    host.wait_no_address(port, LINGER + 60)
    client.kill()
    assert host.wait_address(port) == address
    assert routable(port) == []
    assert host.starts() == ["run --hook eth0"]


def test_the_daemon_is_killed(port: Port, host: Hooked, client: Dhclient) -> None:
    """The next failure starts it again, and it takes over what it had."""
    address = failed(client, host, port)
    (daemon,) = host.daemons("eth0")
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not host.daemons("eth0"), "its end")
    since = port.sniffer.mark()
    assert port.host.link_local("eth0") == [address]
    port.sniffer.wait_announcement(address, 60, since=since)
    assert port.host.link_local("eth0") == [address]
    assert len(host.daemons("eth0")) == 1
    assert host.starts() == ["run --hook eth0"] * 2


def test_two_interfaces(
    port: Port,
    host: Hooked,
    client: Dhclient,
    server: Dhcpd,
    stack: contextlib.ExitStack,
) -> None:
    second = port.switch.attach(port.host, "eth1", plugged=False)
    other = stack.enter_context(Dhclient(second))
    other.start()
    address = failed(client, host, port)
    elsewhere = host.wait_address(second)
    assert address != elsewhere
    assert sorted(host.starts()) == ["run --hook eth0", "run --hook eth1"]
    # A lease on the one is no lease on the other.
    server.start()
    client.wait_bound()
    host.wait_no_address(port, LINGER + 60)
    assert port.host.link_local("eth1") == [elsewhere]
    client.ask("-r")
    host.wait_ended("eth0")
    assert port.host.link_local("eth1") == [elsewhere]
    assert len(host.daemons("eth1")) == 1


# --- connections --------------------------------------------------------------------------------


def test_a_connection_survives_the_arrival_of_a_lease(
    port: Port, host: Hooked, client: Dhclient, server: Dhcpd, make_host: MakeHost
) -> None:
    peer = make_host(plugged=True)
    peer.host.ip(f"addr add {PEER}/16 dev eth0")
    address = failed(client, host, port)
    with Talk(peer.host, PEER, port.host, address) as talk:
        talk.alive()
        server.start()
        client.wait_bound()
        talk.alive()
        # The linger is over, the connection is not.
        wait_until(lambda: "connections use ours" in host.autoip("status", "eth0"), "draining")
        talk.alive()
        assert port.host.link_local("eth0") == [address]
    host.wait_no_address(port)


def test_a_connection_over_the_lease_survives_the_release(
    port: Port, host: Hooked, client: Dhclient, server: Dhcpd
) -> None:
    failed(client, host, port)
    server.start()
    lease = client.wait_bound()
    with Talk(server.namespace, server.address, port.host, lease) as talk:
        assert len(port.host.link_local("eth0")) == 1
        talk.alive()
        host.wait_no_address(port, LINGER + 60)
        talk.alive()


# --- whatever is broken on our side ------------------------------------------------------------------


def no_interpreter(host: Hooked) -> str:
    host.program.write_text("#!/nowhere/python3\n")
    return rf"hook: eth0: {re.escape(str(host.program))} cannot be run"


def no_program(host: Hooked) -> str:
    host.program.unlink()
    return rf"hook: eth0: {re.escape(str(host.program))} cannot be run"


def broken_program(host: Hooked) -> str:
    host.program.write_text("#!/bin/sh\necho Traceback >&2; exit 1\n")
    return r"hook: eth0: .* run --hook eth0 ended with status 1"


def unreadable_configuration(host: Hooked) -> str:
    machine.write(host.host, "/etc/autoip.conf", "[*]\npolicy = sometimes\n")
    return r"/etc/autoip\.conf:2: policy sometimes: "


def full_run(host: Hooked) -> str:
    host.host.run("mount", "-t", "tmpfs", "-o", "size=4k,mode=755", "full", "/run")
    host.host.run("dd", "if=/dev/zero", "of=/run/full", "bs=4k", check=False)
    return r"hook: eth0: cannot write /run/autoip-hooks/"


def no_run(host: Hooked) -> str:
    host.host.run("mount", "-t", "tmpfs", "-o", "ro", "none", "/run")
    return r"hook: eth0: cannot write /run/autoip-hooks/"


BROKEN = [
    no_interpreter,
    no_program,
    broken_program,
    unreadable_configuration,
    full_run,
    no_run,
]


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_what_is_broken_on_our_side_is_one_line_to_syslog(
    port: Port,
    host: Hooked,
    server: Dhcpd,
    stack: contextlib.ExitStack,
    break_it: object,
) -> None:
    assert callable(break_it)
    says = break_it(host)
    # One failure, then a lease: the retry is long enough for the server to be there.
    client = stack.enter_context(Dhclient(port, timeout=1, retry=5))
    client.start()
    client.wait_reason("FAIL")
    host.syslog.wait_line(says)
    server.start()
    lease = client.wait_bound()
    assert routable(port) == [lease]
    assert client.running
    assert set(client.reasons()) == {"PREINIT", "FAIL", "BOUND"}
    assert not [line for line in client.lines if "sh:" in line or "autoip" in line]
    # A daemon that could be started may have its own to say about a full disk.
    lines = [line for line in host.complaints() if " lock file " not in line]
    assert len(lines) == client.reasons().count("FAIL")
    assert all(re.search(says, line) for line in lines)


def test_the_shared_script_is_gone(port: Port, host: Hooked, client: Dhclient) -> None:
    port.host.run("rm", "/etc/autoip/hook")
    client.start()
    client.wait_reason("FAIL")
    assert not [line for line in client.lines if "sh:" in line or "autoip" in line]
    assert host.complaints() == []


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

"""NetworkManager beside autoip: the real one, with our hooks, under Debian's policy for its bus."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from dataclasses import dataclass

import pytest

from autoip.dhcp.clients import DHCP_TIMEOUT
from lab import (
    AddressMonitor,
    Daemon,
    Dhcpd,
    LabError,
    Namespace,
    NetworkManager,
    Port,
    SystemBus,
    machine,
)
from tests.require import requires_kernel_feature, requires_program

from .conftest import MakeHost, autoip_command
from .helpers import LINK_LOCAL, NETNS, PEER, claimed, reclaimed, wait_until
from .hooked import Hooked, MakeHooked, routable
from .talk import Talk

pytestmark = [
    *NETNS,
    requires_program("NetworkManager", "network-manager"),
    requires_program("nmcli", "network-manager"),
    requires_program("dbus-daemon", "dbus"),
    requires_program("dhcpd", "isc-dhcp-server"),
]

OLD_RESET = 45.0
"""Seconds after which NetworkManager by itself takes all addresses off and begins anew."""
LEASE = 12
"""Seconds, where a lease is to run out."""
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Managed:
    """A host whose interfaces are NetworkManager's, with our hooks."""

    port: Port
    hooked: Hooked
    bus: SystemBus
    nm: NetworkManager
    stack: contextlib.ExitStack

    @property
    def host(self) -> Namespace:
        return self.port.host

    def autoip(self, *words: str, wrapper: tuple[str, ...] = ()) -> Daemon:
        """The daemon as the enabled unit has it, running."""
        options = ("--policy", "fallback", "--after", "1")
        command = [*wrapper, *autoip_command(), *(words or (self.port.name,)), *options]
        daemon = self.stack.enter_context(Daemon(self.host, self.port.name, command))
        # As the unit's: where the commands look.
        del daemon.env["RUNTIME_DIRECTORY"]
        daemon.start()
        return daemon

    def connected(self, **settings: str) -> str:
        """NetworkManager's default profile, with what is said otherwise; its name. DHCP is under way."""
        profile = self.nm.add_profile(self.port.name, **{"ipv6__method": "disabled", **settings})
        self.nm.wait_state(self.port.name, 70, 100)
        return profile

    def status(self) -> dict[str, object]:
        told = self.hooked.autoip("status", self.port.name, "--json")
        return dict(json.loads(told)["interfaces"][0])

    def why(self) -> str:
        """What has brought the state about; empty while the daemon does not answer yet."""
        return str(self.status().get("why", ""))


@pytest.fixture
def managed(make_host: MakeHost, make_hooked: MakeHooked, stack: contextlib.ExitStack) -> Managed:
    """`eth0`, for which the hooks are installed; NetworkManager runs and has no profile yet."""
    port = make_host(plugged=True)
    hooked = make_hooked(port.host)
    bus = stack.enter_context(SystemBus(port.host))
    nm = stack.enter_context(NetworkManager(port.host))
    hooked.install("--client", "networkmanager", port.name)
    bus.start()
    nm.start()
    nm.wait_state(port.name, 30)
    return Managed(port, hooked, bus, nm, stack)


@pytest.fixture
def server(make_host: MakeHost, stack: contextlib.ExitStack) -> Dhcpd:
    """Not started yet."""
    return stack.enter_context(Dhcpd(make_host("srv0", plugged=True)))


def no_lease(managed: Managed, seconds: float, peer: Port) -> None:
    """Nobody answers DHCP: an address comes and stays, with a connection over it."""
    daemon = managed.autoip()
    managed.stack.enter_context(monitor := AddressMonitor(managed.host))
    address = daemon.wait_address(60)
    peer.host.ip(f"addr add {PEER}/16 dev {peer.name} scope link")
    talk = managed.stack.enter_context(Talk(managed.host, address, peer.host, PEER))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        talk.alive()
        time.sleep(1)
    assert daemon.addresses() == [address]
    seen = [(added, event.address) for _, added, event in monitor.events() if event.link_local]
    assert (False, address) not in seen
    assert "failed" not in " ".join(line for line in managed.nm.lines if "state change" in line)
    assert managed.nm.device_state("eth0") == 70


@pytest.mark.long(130)
def test_no_server_for_longer_than_it_waits(
    managed: Managed, make_host: MakeHost, server: Dhcpd
) -> None:
    # The default profile, IPv6 without a router; each reset would take all addresses off.
    managed.connected(ipv6__method="auto")
    no_lease(managed, 2.2 * OLD_RESET, make_host("peer0", plugged=True))
    server.start()
    assert managed.nm.wait_state("eth0", 100, timeout=120) == 100
    wait_until(lambda: routable(managed.port), "a lease", 90)


def test_a_server_that_appears(managed: Managed, server: Dhcpd) -> None:
    profile = managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    server.start()
    wait_until(lambda: routable(managed.port), "a lease", 90)
    assert managed.nm.wait_state("eth0", 100) == 100
    assert managed.nm.active("eth0") == profile
    # Both for the linger, then the lease alone.
    daemon.wait_no_address(60)
    assert len(routable(managed.port)) == 1
    assert routable(managed.port) == [server.leases()[managed.port.mac]]
    assert f"default via {server.address}" in managed.host.ip("route show default")
    assert managed.nm.active("eth0") == profile
    shown = "-g IP4.ADDRESS device show eth0"
    wait_until(lambda: str(address) not in managed.nm.nmcli(shown), "NetworkManager to know")


def test_a_lease_that_runs_out(managed: Managed, server: Dhcpd) -> None:
    server.set_lease(LEASE)
    server.start()
    profile = managed.connected()
    assert managed.nm.wait_state("eth0", 100) == 100
    daemon = managed.autoip()
    wait_until(lambda: "the interface has" in managed.why(), "the lease seen")
    assert daemon.addresses() == []
    server.stop()
    first = daemon.wait_address(90)
    assert routable(managed.port) == []
    assert managed.nm.active("eth0") == profile
    server.start()
    wait_until(lambda: routable(managed.port), "the lease again", 120)
    daemon.wait_no_address(60)
    server.stop()
    assert daemon.wait_address(90) == first
    assert managed.nm.active("eth0") == profile


@pytest.mark.long(160)
def test_a_lost_lease_is_replaced_after_a_change_of_the_network(
    managed: Managed, server: Dhcpd, make_host: MakeHost
) -> None:
    """NetworkManager asks for the old address until it begins anew. Each time: one claim, and the session lives."""
    conf = "/etc/NetworkManager/conf.d/90-autoip.conf"
    managed.nm.stop()
    managed.host.run("sed", "-i", f"s/dhcp-timeout={DHCP_TIMEOUT}$/dhcp-timeout=25/", conf)
    managed.nm.start()
    server.set_lease(LEASE)
    server.start()
    daemon = managed.autoip()
    managed.connected()
    managed.nm.wait_state("eth0", 100)
    server.stop()
    address = daemon.wait_address(60)
    peer = make_host("peer0", plugged=True)
    peer.host.ip(f"addr add {PEER}/16 dev {peer.name} scope link")
    with Talk(managed.host, address, peer.host, PEER) as talk:
        # More often than NetworkManager would by default.
        since = 0
        for _ in range(5):
            # The last announcement of the claim before must not be taken for one of the next.
            # (NetworkManager announces its own address as well.)
            managed.port.sniffer.wait_count(
                lambda f: f.is_announcement and f.spa == address, 2, 30, since=since
            )
            since, lines = managed.port.sniffer.mark(), len(managed.nm.lines)
            managed.nm.wait_line(r"\(eth0\): state change: \S+ -> failed", 60, since=lines)
            assert claimed(managed.port, since=since) == address
            talk.alive()
            assert len(managed.port.sniffer.probes(address, since)) == 3
        other = managed.stack.enter_context(
            Dhcpd(peer, network="10.99.0.0/24", authoritative=False)
        )
        other.start()
        managed.nm.wait_state("eth0", 100, timeout=100)
        assert routable(managed.port) == [other.leases()[managed.port.mac]]
        talk.alive()


def test_nothing_while_it_is_not_activated(managed: Managed) -> None:
    # An address that NetworkManager finds there would keep it from ever connecting the profile.
    daemon = managed.autoip()
    daemon.wait_line("-> standby: .*NetworkManager")
    wait_until(lambda: "disconnected" in managed.why(), "the reason in the status")
    time.sleep(3)
    assert managed.port.sniffer.probes() == []
    profile = managed.connected()
    daemon.wait_address(60)
    assert managed.nm.active("eth0") == profile


def test_an_activation_that_fails(managed: Managed, server: Dhcpd) -> None:
    # Without the configuration that the hooks bring: it fails, and begins anew.
    managed.autoip()
    profile = managed.connected(ipv4__dhcp_timeout="8")
    address = claimed(managed.port)
    since = managed.port.sniffer.mark()
    wait_until(lambda: (120, 30) in managed.nm.states("eth0"), "the failure", 60)
    assert reclaimed(managed.port, since=since) == address
    # The address was never there for it to find.
    assert managed.nm.active("eth0") == profile
    server.start()
    assert managed.nm.wait_state("eth0", 100, timeout=60) == 100
    assert managed.nm.active("eth0") == profile
    wait_until(lambda: routable(managed.port), "a lease")


def test_carrier_loss(managed: Managed) -> None:
    profile = managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    for seconds in (1, 9):  # it gives a carrier back within 6 s a chance
        managed.port.carrier(False)
        daemon.wait_no_address(30)
        time.sleep(seconds)
        managed.port.carrier(True)
        assert daemon.wait_address(60) == address
        managed.nm.wait_state("eth0", 70)
        assert managed.nm.active("eth0") == profile


def test_down_and_up(managed: Managed) -> None:
    profile = managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    managed.nm.nmcli(f"con down {profile}")
    daemon.wait_line("-> standby: .*state (deactivating|disconnected)", 30)
    daemon.wait_no_address()
    # Our doing, not the loss of an address that NetworkManager has taken.
    assert "removed by somebody else" not in daemon.output
    since = managed.port.sniffer.mark()
    time.sleep(3)
    assert managed.port.sniffer.probes(since=since) == []
    managed.nm.nmcli(f"--wait 0 con up {profile}")
    assert daemon.wait_address(60) == address
    # The same once more, by the other command.
    managed.nm.nmcli("device disconnect eth0")
    daemon.wait_no_address(30)
    managed.nm.nmcli("--wait 0 device connect eth0")
    assert daemon.wait_address(60) == address
    assert managed.nm.active("eth0") == profile


def test_reapply(managed: Managed) -> None:
    managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    managed.port.sniffer.wait_count(lambda f: f.is_announcement, 2, 30)
    since = managed.port.sniffer.mark()
    managed.nm.nmcli("device modify eth0 ipv4.route-metric 150")
    assert claimed(managed.port, since=since) == address
    assert managed.nm.device_state("eth0") == 70


def test_a_profile_without_ipv4(managed: Managed) -> None:
    """Such as an interface that a container or a packet capture uses: no address, also after it is modified."""
    daemon = managed.autoip()  # there before the dispatcher would start one
    managed.connected(ipv4__method="disabled", ipv6__method="link-local")
    managed.nm.wait_state("eth0", 100)
    wait_until(lambda: "ipv4.method disabled" in managed.why(), "the reason")
    assert managed.port.sniffer.probes() == []
    managed.nm.nmcli("device modify eth0 ipv4.method manual ipv4.addresses 192.0.2.9/24")
    wait_until(lambda: "192.0.2.9" in managed.why(), "the policy's reason")
    managed.nm.nmcli("device modify eth0 ipv4.method link-local -ipv4.addresses 192.0.2.9/24")
    wait_until(lambda: "ipv4.method link-local" in managed.why(), "the reason")
    managed.nm.nmcli("device modify eth0 ipv4.method auto")
    daemon.wait_address(60)
    managed.nm.nmcli("device modify eth0 ipv4.method disabled")
    daemon.wait_no_address(30)  # NetworkManager may have taken it off before it says why
    wait_until(lambda: "ipv4.method disabled" in managed.why(), "the reason")


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
def test_it_starts_again(managed: Managed, *, crash: bool) -> None:
    profile = managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    if crash:
        managed.nm.kill()
    else:
        managed.nm.stop()
    # After a crash it knows nothing: an address that it finds would be somebody else's for ever.
    daemon.wait_no_address(30)
    managed.nm.start()
    managed.nm.wait_state("eth0", 70)
    assert managed.nm.active("eth0") == profile
    assert daemon.wait_address(60) == address
    assert managed.nm.active("eth0") == profile


def test_left_alone_and_taken_back(managed: Managed) -> None:
    profile = managed.connected()
    daemon = managed.autoip()
    address = daemon.wait_address(60)
    managed.nm.nmcli("device set eth0 managed no")
    managed.nm.wait_state("eth0", 10)
    assert daemon.wait_address(60) == address
    time.sleep(1)
    assert daemon.addresses() == [address]
    managed.nm.nmcli("device set eth0 managed yes")
    managed.nm.wait_state("eth0", 70)
    assert managed.nm.active("eth0") == profile
    assert daemon.wait_address(60) == address


def test_an_interface_that_appears_and_has_another_name(managed: Managed) -> None:
    daemon = managed.autoip("usb0")
    late = managed.port.switch.attach(managed.host, "usb0", plugged=True)
    managed.nm.wait_state("usb0", 30)
    time.sleep(3)
    assert managed.host.link_local("usb0") == []
    assert late.sniffer.probes() == []
    managed.nm.add_profile("usb0", ipv6__method="disabled")
    late.sniffer.wait_announcement(timeout=60)
    late.delete()
    since = late.sniffer.mark()
    late.create()
    claimed(late, since=since)
    assert daemon.running
    assert managed.nm.active("usb0") == "wired-usb0"


def test_as_a_user_without_rights(managed: Managed) -> None:
    # As the unit runs it: NetworkManager's own policy lets anyone read the state of a device.
    managed.host.run("install", "-d", "-o", str(NOBODY), "/run/autoip", "/var/lib/autoip")
    caps = "-all,+net_raw,+net_admin"
    user = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    daemon = managed.autoip(
        wrapper=("setpriv", *user, f"--inh-caps={caps}", f"--ambient-caps={caps}", "--")
    )
    daemon.wait_line("-> standby: .*NetworkManager")
    managed.connected()
    daemon.wait_address(60)
    managed.nm.nmcli("device disconnect eth0")
    daemon.wait_no_address(30)


def test_no_wake_ups_while_nothing_happens(managed: Managed) -> None:
    managed.connected()
    daemon = managed.autoip()
    daemon.wait_address(60)
    daemon.wait_line("announcing -> bound", 30)
    time.sleep(1)
    before = daemon.usage()
    time.sleep(20)
    # NetworkManager's own address or two may come and go; a timer would be seen.
    assert (daemon.usage() - before).voluntary <= 5


# --- the dispatcher ------------------------------------------------------------------------------


def starts(managed: Managed) -> list[str]:
    return managed.hooked.starts()


def test_the_hook_starts_and_stops_a_daemon(managed: Managed) -> None:
    # Connected by IPv6 alone: told to the dispatcher, and no service is enabled here.
    profile = managed.nm.add_profile("eth0", ipv6__method="link-local", ipv4__dhcp_timeout="45")
    managed.nm.wait_state("eth0", 100)
    address = managed.hooked.wait_address(managed.port)
    assert starts(managed) == ["run --hook --early eth0"]
    managed.nm.nmcli("device reapply eth0")
    time.sleep(1)
    assert managed.hooked.wait_address(managed.port) == address
    assert starts(managed)[:1] == ["run --hook --early eth0"]
    wait_until(lambda: len(managed.hooked.daemons("eth0")) == 1, "the end of any second one")
    managed.nm.nmcli(f"con down {profile}")
    managed.hooked.wait_ended("eth0")
    assert managed.host.link_local("eth0") == []
    managed.nm.nmcli(f"con up {profile}")
    assert managed.hooked.wait_address(managed.port) == address
    assert managed.hooked.complaints() == []


def test_install_without_names(managed: Managed) -> None:
    """Where NetworkManager runs, hooks alone would do nothing when DHCP fails."""
    hooked = managed.hooked
    hooked.hooks("remove")
    command = shlex.join([*autoip_command(), "hooks", "install", "--program", str(hooked.program)])

    def install(*words: str) -> str:
        return managed.host.run("sh", "-c", f"{command} {shlex.join(words)} 2>&1; echo status $?")

    told = install()
    assert "; nothing was changed; run: autoip hooks install eth0\n" in told
    assert told.endswith("\nstatus 1\n") and told.count("\n") == 2
    assert managed.host.run("sh", "-c", "ls /etc/autoip 2>&-; true") == ""
    (row,) = [line for line in hooked.hooks("list").splitlines() if line.startswith("eth0 ")]
    assert row.endswith(
        "nothing: NetworkManager reports no failure of DHCP: autoip hooks install eth0"
    )
    told = install("eth0")
    assert "reloaded NetworkManager's configuration" in told and told.endswith("status 0\n")
    hooked.hooks("remove")
    managed.nm.stop()
    told = install()
    assert told.endswith("status 0\n") and "no interface was named" not in told


@requires_kernel_feature("bridge")
def test_a_port_of_a_bridge(managed: Managed) -> None:
    """Reported to the dispatcher as connected without IPv4: a daemon is started, which leaves the port alone."""
    address = "ipv4.method manual ipv4.addresses 192.0.2.9/24 ipv6.method disabled"
    managed.nm.nmcli(f"con add type bridge con-name br0 ifname br0 bridge.stp no {address}")
    managed.nm.nmcli("con add type ethernet con-name port ifname eth0 master br0")
    managed.nm.wait_state("eth0", 100)
    wait_until(lambda: starts(managed) == ["run --hook --early eth0"], "the hook's start")
    managed.hooked.wait_state("eth0", "standby")
    wait_until(lambda: managed.why() == "belongs to br0", "the reason")
    since = managed.port.sniffer.mark()
    managed.hooked.call("start", "eth0")  # the end of all waiting
    time.sleep(3)
    assert [f for f in managed.port.sniffer.probes(since=since) if f.tpa in LINK_LOCAL] == []
    assert managed.host.link_local("eth0") == []
    assert managed.hooked.complaints() == []


def test_patterns(managed: Managed) -> None:
    """The one service for all interfaces serves what a pattern matches, and NetworkManager knows the same ones."""
    managed.hooked.hooks("remove")
    unit = "/etc/systemd/system/autoip.service"
    machine.write(managed.host, unit, "")
    managed.hooked.install("--client", "networkmanager", "e*0")
    managed.port.switch.attach(managed.host, "eth1", plugged=True)

    def outlook() -> list[str]:
        rows = [line.split(maxsplit=1) for line in managed.hooked.hooks("list").splitlines()]
        return [row[1] for row in rows if row and row[0] in ("eth0", "eth1")]

    without = "nothing: NetworkManager reports no failure of DHCP: autoip hooks install eth1"
    off = (
        "nothing: autoip.service is enabled and does not serve it: systemctl restart autoip.service"
    )
    wait_until(lambda: outlook() == [off, without], "eth1 to be NetworkManager's", 30)
    machine.write(managed.host, "/etc/autoip.conf", "[*]\nafter = 1\ndelay = 100\n")
    service = [*autoip_command(), "run", "--configured", "--up"]
    daemon = managed.stack.enter_context(Daemon(managed.host, "eth0", service))
    del daemon.env["RUNTIME_DIRECTORY"]
    daemon.start()
    wait_until(lambda: managed.status().get("policy") == "fallback", "to be served")
    assert outlook() == ["autoip, which serves it already, claims an address", without]
    managed.connected()
    waits = rf"dhcp4 \(eth0\): activation: beginning transaction.*timeout in {DHCP_TIMEOUT} s"
    managed.nm.wait_line(waits, 30)
    address = daemon.wait_address(60)
    # The dispatcher's hook leaves it to the service, and says that DHCP has failed.
    before = len(managed.hooked.daemons("eth0"))
    managed.hooked.call("start", "eth0")
    wait_until(lambda: starts(managed) == ["run --hook eth0"], "the hook's start")
    wait_until(lambda: len(managed.hooked.daemons("eth0")) == before, "the hook's end")
    assert daemon.addresses() == [address]
    assert managed.hooked.complaints() == []


def test_the_hook_leaves_others_alone(managed: Managed, server: Dhcpd) -> None:
    server.start()
    managed.connected()
    managed.nm.wait_state("eth0", 100)
    # Configured by somebody else: "connected (externally)".
    managed.port.switch.attach(managed.host, "eth1", plugged=True)
    managed.nm.wait_state("eth1", 30)
    managed.host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6")
    managed.host.ip("-6 addr add fd00::9/64 dev eth1")
    managed.nm.wait_state("eth1", 100)
    time.sleep(2)  # the dispatcher is done
    assert starts(managed) == []


def test_the_service_survives_what_the_dispatcher_tells(managed: Managed) -> None:
    # `down` comes and nothing else while NetworkManager tries again.
    daemon = managed.autoip()  # there before the dispatcher would start one
    managed.connected(ipv6__method="link-local")
    address = daemon.wait_address(60)
    managed.port.carrier(False)
    managed.nm.wait_state("eth0", 20, timeout=60)
    time.sleep(1)
    assert daemon.running
    managed.port.carrier(True)
    assert daemon.wait_address(60) == address


def test_only_the_named_interface_asks_for_long(managed: Managed) -> None:
    managed.port.switch.attach(managed.host, "eth1", plugged=True)
    managed.connected()
    managed.nm.add_profile("eth1", ipv6__method="disabled")
    managed.nm.wait_state("eth1", 70)

    def told(interface: str) -> str:
        pattern = rf"dhcp4 \({interface}\): activation: beginning transaction"
        with contextlib.suppress(LabError):
            return managed.nm.wait_line(pattern, 30)
        return ""

    assert f"timeout in {DHCP_TIMEOUT} seconds" in told("eth0")
    assert "timeout in 45 seconds" in told("eth1")

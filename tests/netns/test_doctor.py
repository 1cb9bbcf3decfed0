"""doctor: each fault brought about with the real thing, found, and gone after its cure was run as it stands there."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from autoip.dhcp.clients import CLIENTS
from lab import (
    ArpFrame,
    Daemon,
    Namespace,
    NetworkManager,
    Port,
    Switch,
    SystemBus,
    frames,
    machine,
    tcx,
)
from lab.daemon import REPOSITORY
from lab.dhcpcd import DhcpcdClient
from lab.neighbour import Neighbour
from lab.networkd import NetworkdClient
from lab.peers import AvahiAutoipd
from tests.require import requires_program

from .commands import Ran, report, run
from .conftest import autoip_command
from .helpers import NEIGHBOUR, NETNS, PATIENCE, PEER, A, bind, configuration, has_tcx, wait_until

pytestmark = NETNS

Finding = dict[str, Any]
NOBODY = ("setpriv", "--reuid", "65534", "--clear-groups")
FAST = ("--delay", "50")
requires_nm = requires_program("NetworkManager", "network-manager")
requires_bus = requires_program("dbus-daemon", "dbus")


@dataclass(frozen=True, slots=True)
class Patient:
    """A host with files of its own, and the command for it."""

    port: Port
    where: Daemon
    """The environment of a daemon that serves it, or would."""
    prefix: tuple[str, ...] = ()
    """Before the command."""

    @property
    def host(self) -> Namespace:
        return self.port.host

    def examine(self, *words: str, prefix: tuple[str, ...] = ()) -> Ran:
        """`autoip doctor --json WORDS`."""
        return run(
            self.where, " ".join(["doctor", "--json=short", *words]), prefix=(*self.prefix, *prefix)
        )

    def troubles(self, name: str = "eth0", prefix: tuple[str, ...] = ()) -> list[Finding]:
        """What is not ok, and the exit status as it has to be."""
        ran = self.examine(name, prefix=prefix)
        assert ran.err == "" and ran.json["unread"] == []
        found = [one for one in ran.json["findings"] if one["result"] != "ok"]
        assert ran.status == (1 if any(one["result"] == "failure" for one in found) else 0)
        return found

    def trouble(self, check: str, result: str, what: str, *, name: str = "eth0") -> str:
        """The cure of the one thing that is wrong."""
        [found] = self.troubles(name)
        assert (found["check"], found["result"]) == (check, result)
        assert what in found["what"]
        return str(found["cure"])

    def cure(self, command: str) -> None:
        """Run as it stands there; then all is well."""
        self.host.run("sh", "-c", command)
        assert self.troubles() == []


def patient(stack: contextlib.ExitStack, port: Port) -> Patient:
    machine.give_own_files(port.host)
    for path in (path for client in CLIENTS.values() for path in client.paths):
        port.host.run("rm", "-f", path)
    command = [*autoip_command(), "run", port.name, *FAST]
    return Patient(port, stack.enter_context(Daemon(port.host, port.name, command)))


@pytest.fixture
def ill(stack: contextlib.ExitStack, port: Port) -> Patient:
    """One interface, `eth0`, with nothing wrong yet."""
    return patient(stack, port)


@pytest.mark.parametrize("prefix", [(), NOBODY], ids=["root", "nobody"])
def test_nothing_is_wrong_and_nothing_is_changed(ill: Patient, prefix: tuple[str, ...]) -> None:
    """All is ok beside a daemon, which notices nothing of it, nor does the kernel, nor the link."""
    bind(ill.port, ill.where, "--ip", str(A))
    wait_until(lambda: list(ill.where.state.glob("*.json")), "the address is saved")

    def everything() -> list[object]:
        told = {**report(ill.where), "step_in": None}
        filters = ill.host.run("tc", "filter", "show", "dev", "eth0", "egress")
        files = [(path, path.stat().st_mtime_ns) for path in ill.where.folder.rglob("*")]
        return [configuration(ill.host), filters, told, ill.where.lines, sorted(files)]

    before = everything()
    since = ill.port.sniffer.mark()
    ran = ill.examine("eth0", prefix=prefix)
    assert everything() == before
    assert ill.port.sniffer.frames(since) == []
    assert (ran.status, ran.err) == (0, "")
    assert {one["result"] for one in ran.json["findings"]} == {"ok"}
    unprivileged = [
        "BPF programs of tcx at eth0: needs CAP_NET_ADMIN and CAP_SYS_ADMIN, run it as root"
    ]
    assert ran.json["unread"] == (unprivileged if prefix else [])


def test_which_interfaces(ill: Patient) -> None:
    """Without names all that are like Ethernet, and no cable to a container; by pattern what is there."""
    ill.host.ip("link add eth0br type bridge")

    def looked_at(*words: str) -> list[str]:
        found = ill.examine(*words).json["findings"]
        names = [one["interface"] for one in found if one["interface"] is not None]
        assert sum(one["interface"] is None for one in found) == 4  # once, however many interfaces
        return list(dict.fromkeys(names))

    assert looked_at() == ["eth0br"]
    assert sorted(looked_at("eth0*")) == ["eth0", "eth0br"]
    assert looked_at("lo") == ["lo"]
    ran = ill.examine("eht0")
    assert (ran.status, ran.out) == (2, "")
    assert "the nearest is: eth0" in ran.err


def test_down(ill: Patient) -> None:
    ill.port.down()
    command = ill.trouble("up", "failure", "is down")
    ill.host.run("sh", "-c", command)
    wait_until(lambda: not ill.troubles(), "up again")


def test_no_carrier(ill: Patient) -> None:
    ill.port.carrier(False)
    wait_until(ill.troubles, "the carrier's end is reported")
    ill.trouble("carrier", "failure", "no carrier")
    ill.port.carrier(True)
    assert ill.troubles() == []
    ill.port.dormant(True)
    ill.trouble("carrier", "failure", "802.1X")


def test_port_of_a_bridge(ill: Patient) -> None:
    ill.host.ip("link add br0 type bridge")
    ill.host.ip("link set eth0 master br0")
    ill.cure(ill.trouble("master", "failure", "belongs to br0"))


def test_other_mask(ill: Patient) -> None:
    ill.host.ip(f"addr add {PEER}/24 scope link dev eth0")
    rival, mask = ill.troubles()
    assert (rival["check"], mask["check"]) == ("rival", "mask")
    assert f"{PEER}/24" in mask["what"]
    ill.host.run("sh", "-c", mask["cure"])
    # With the right mask it is somebody else's all the same.
    ill.cure(ill.trouble("rival", "warning", f"somebody has put {PEER}/16"))


def test_default_route_of_somebody(ill: Patient) -> None:
    ill.host.ip("route add default dev eth0 metric 1001002")
    ill.cure(ill.trouble("default-route", "warning", "default route"))


def test_default_route_of_ours(ill: Patient) -> None:
    bind(ill.port, ill.where, "--default-route")
    wait_until(lambda: "default" in ill.host.ip("route"), "the default route")
    assert ill.troubles() == []


def test_other_route_to_link_local(ill: Patient, switch: Switch) -> None:
    switch.attach(ill.host, "eth1")
    bind(ill.port, ill.where)
    ill.host.ip("route add 169.254.0.0/16 dev eth1 metric 7")
    ours = 1000 + ill.host.index("eth0")
    what = f"eth1 (metric 7) wins over eth0 (metric {ours})"
    ill.cure(ill.trouble("routes", "warning", what))
    assert "169.254.0.0/16 dev eth0" in ill.host.ip("route")


def test_strict_rp_filter(ill: Patient, switch: Switch) -> None:
    """What the kernel drops because of it is there after the cure."""
    second = switch.attach(ill.host, "eth1")
    ill.host.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=0")
    ill.where.start("eth1")
    ill.port.sniffer.wait_announcement(timeout=PATIENCE)
    second.sniffer.wait_announcement(timeout=PATIENCE)
    for number, port in enumerate((ill.port, second), 1):
        switch.namespace.ip(f"addr add 169.254.77.{number}/16 dev {port.far}")
        ill.host.run("sysctl", "-w", f"net.ipv4.conf.{port.name}.rp_filter=1")
    with ill.host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("", 7777))
        ears.settimeout(PATIENCE)

        def heard(count: int) -> set[str]:
            """The texts of the first broadcasts that arrive: one is sent on eth1, then one on eth0."""
            for port in (second, ill.port):
                with switch.namespace.call(
                    socket.socket, socket.AF_INET, socket.SOCK_DGRAM
                ) as mouth:
                    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, port.far.encode())
                    mouth.sendto(port.name.encode(), ("169.254.255.255", 7777))
            return {ears.recv(100).decode() for _ in range(count)}

        assert ill.troubles("eth0") == []
        command = ill.trouble("rp-filter", "warning", "is by eth0", name="eth1")
        assert heard(1) == {"eth0"}
        ill.host.run("sh", "-c", command)
        assert ill.troubles("eth1") == []
        assert heard(2) == {"eth0", "eth1"}


@pytest.mark.parametrize("where", ["all", "eth0"])
def test_proxy_arp_here(ill: Patient, where: str) -> None:
    ill.host.run("sysctl", "-w", f"net.ipv4.conf.{where}.proxy_arp=1")
    ill.cure(ill.trouble("proxy-arp", "warning", "addresses of others"))


def test_proxy_arp_there(ill: Patient) -> None:
    """A machine that answers every question, which the kernel has asked three of."""

    def answers_all(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        return (
            [frames.answer(host.mac, frame)]
            if frame.op == frames.REQUEST and not frame.is_probe
            else []
        )

    bind(ill.port, ill.where)
    ill.port.neighbour(answers_all)
    for number in (1, 2, 3):
        assert ill.troubles() == []
        ill.host.send_udp(f"169.254.9.{number}")
        known = f"169.254.9.{number} dev eth0 lladdr {NEIGHBOUR}"
        wait_until(lambda known=known: known in ill.host.ip("neigh"), known)  # type: ignore[misc]
    ill.trouble("proxy-arp", "warning", f"{NEIGHBOUR} answers for 169.254.9.1")
    ill.port.host.ip("neigh flush dev eth0")
    assert ill.troubles() == []


def test_metadata_host(ill: Patient) -> None:
    ill.host.ip("addr add 192.0.2.2/24 dev eth0")
    ill.host.ip("route add 169.254.169.254/32 via 192.0.2.1 dev eth0 table 100")
    assert ill.troubles() == []
    bind(ill.port, ill.where)
    ill.cure(ill.trouble("metadata", "warning", "has a route in table 100"))
    assert "via 192.0.2.1" in ill.host.ip("route get 169.254.169.254")


# --- before our filter -----------------------------------------------------------------------------


def without_tcx(ill: Patient) -> Patient:
    """The same on a kernel that has none. Where it has, nothing of tc is in the way."""
    if has_tcx(ill.host):
        assert ill.troubles() == []
    ill.where.command[:0] = tcx.WITHOUT
    return replace(ill, prefix=tcx.WITHOUT)


@pytest.mark.parametrize("served", [False, True])
def test_filter_of_tc(ill: Patient, served: bool) -> None:
    ill.host.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    for priority in ("1", "50"):
        words = f"filter add dev eth0 egress pref {priority} protocol all bpf"
        # One instruction: the frame goes on.
        ill.host.run("tc", *words.split(), "bytecode", "1,6 0 0 0", "flowid", "1:1")
    ill = without_tcx(ill)
    if served:
        bind(ill.port, ill.where)
    ill.cure(ill.trouble("egress", "warning", "of priority 1, runs before"))


def test_other_qdisc_in_the_place(ill: Patient) -> None:
    ill.host.run("tc", "qdisc", "add", "dev", "eth0", "ingress")
    ill = without_tcx(ill)
    ill.cure(ill.trouble("egress", "warning", "qdisc ingress"))


def test_program_of_tcx(ill: Patient, stack: contextlib.ExitStack) -> None:
    """In the way is one that was put before ours, not one that was there."""
    index = ill.host.index("eth0")
    try:
        stack.callback(os.close, ill.host.call(tcx.attach, index))
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("the kernel has no tcx (Linux 6.6)")
        raise
    bind(ill.port, ill.where)
    assert ill.troubles() == []
    later = ill.host.call(tcx.attach, index, before=True)
    cure = ill.trouble("egress", "warning", "1 BPF programs of tcx run before")
    assert "bpftool net show dev eth0" in cure
    os.close(later)
    wait_until(lambda: ill.troubles() == [], "the kernel detaches it")


# --- other programs --------------------------------------------------------------------------------


@requires_program("avahi-autoipd", "avahi-autoipd")
def test_avahi_autoipd(ill: Patient, stack: contextlib.ExitStack) -> None:
    """By its process, its address and its default route."""
    ill.host.run("mkdir", "/var/lib/avahi-autoipd")
    peer = stack.enter_context(AvahiAutoipd(ill.port))
    peer.start()
    peer.wait_address(PATIENCE)
    wait_until(lambda: "default" in ill.host.ip("route"), "its default route")
    by_label, by_process, route = ill.troubles()
    assert "avahi-autoipd, by its label" in by_label["what"]
    assert f"process {peer.pid}" in by_process["what"]
    assert route["check"] == "default-route"
    ill.host.run("sh", "-c", by_process["cure"])
    peer.wait(PATIENCE)
    # The laboratory may have ended its script together with it: what is left has a cure of its own.
    for left in ill.troubles():
        ill.host.run("sh", "-c", left["cure"], check=False)  # a route goes with the address
    assert ill.troubles() == []


@requires_program("systemd-networkd", "systemd")
@requires_program("networkd-dispatcher", "networkd-dispatcher")
@requires_bus
def test_networkd(ill: Patient, stack: contextlib.ExitStack) -> None:
    networkd = stack.enter_context(NetworkdClient(ill.port))
    networkd.serve("eth0", "DHCP=no\nLinkLocalAddressing=ipv4")
    networkd.start()
    networkd.wait_address(PATIENCE)
    by_address, by_file = ill.troubles()
    assert "systemd-networkd (process" in by_address["what"]
    assert "LinkLocalAddressing=ipv4 in /etc/systemd/network/10-eth0.network" in by_file["what"]
    ill.host.run("sh", "-c", by_file["cure"])
    wait_until(lambda: not ill.troubles(), "networkd has taken its address off")


@requires_program("dhcpcd", "dhcpcd-base")
def test_dhcpcd(ill: Patient, stack: contextlib.ExitStack) -> None:
    client = stack.enter_context(DhcpcdClient(ill.port, ipv4ll=True))
    client.start()
    wait_until(ill.troubles, "dhcpcd runs")
    command = ill.trouble("dhcpcd", "warning", "does not say noipv4ll")
    ill.cure(command)


@dataclass(frozen=True, slots=True)
class Managed:
    """A patient whose interface is NetworkManager's."""

    patient: Patient
    nm: NetworkManager


@pytest.fixture
def managed(stack: contextlib.ExitStack, ill: Patient) -> Managed:
    bus = stack.enter_context(SystemBus(ill.host))
    nm = stack.enter_context(NetworkManager(ill.host))
    bus.start()
    nm.start()
    nm.wait_state("eth0", 30)
    return Managed(ill, nm)


def unwaited(command: str) -> str:
    """The command without its wait for a lease, which never comes here."""
    return command.replace("nmcli connection up", "nmcli -w 0 connection up")


@requires_nm
@requires_bus
def test_networkmanager_has_not_activated_it(managed: Managed) -> None:
    what = "NetworkManager has it in state disconnected"
    command = managed.patient.trouble("networkmanager", "failure", what)
    managed.patient.host.run("sh", "-c", command)
    managed.nm.wait_state("eth0", 10)
    assert managed.patient.troubles() == []
    # An ordinary user is told the same.
    ran = managed.patient.examine("eth0", prefix=NOBODY)
    assert {one["result"] for one in ran.json["findings"]} == {"ok"}


@requires_nm
@requires_bus
def test_networkmanagers_time_for_dhcp(managed: Managed) -> None:
    profile = managed.nm.add_profile("eth0", name="wire", ipv6__method="disabled")
    managed.nm.wait_state("eth0", 70)
    what = "takes all addresses off it when DHCP has failed for 45 s"
    command = managed.patient.trouble("networkmanager", "warning", what)
    assert profile in command
    managed.patient.host.run("sh", "-c", unwaited(command))
    wait_until(lambda: not managed.patient.troubles(), "activated with the new time")
    # The hooks' own file does the same for a profile that does not say.
    managed.nm.nmcli("connection modify wire ipv4.dhcp-timeout 0")
    assert len(managed.patient.troubles()) == 1
    install = "hooks install --client networkmanager --program /bin/true eth0"
    managed.patient.host.run(*autoip_command(), *install.split())
    assert managed.patient.troubles() == []


@requires_nm
@requires_bus
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("ipv4.method link-local", "method link-local"),
        (
            "ipv4.method manual ipv4.addresses 192.0.2.2/24 ipv4.link-local enabled",
            "link-local enabled",
        ),
    ],
)
def test_networkmanagers_own_link_local(managed: Managed, settings: str, what: str) -> None:
    words = f"type ethernet con-name wire ifname eth0 ipv6.method disabled {settings}"
    managed.nm.nmcli(f"connection add {words}")
    managed.nm.wait_state("eth0", 100)
    wait_until(lambda: len(managed.patient.troubles()) == 2, "its address as well")
    by_address, by_profile = managed.patient.troubles()
    assert "NetworkManager (process" in by_address["what"]
    assert what in by_profile["what"]
    managed.patient.host.run("sh", "-c", unwaited(by_profile["cure"]))
    wait_until(
        lambda: "rival" not in [one["check"] for one in managed.patient.troubles()], "without"
    )


def test_a_bus_that_never_answers(ill: Patient, tmp_path: Path) -> None:
    """The command ends by its own time-out, and names what it could not read."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        ill.where.env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp_path}/bus"
        ran = ill.examine("eth0")
    assert ran.status == 0
    assert ran.json["unread"] == ["NetworkManager: no answer within 1.5 s"]
    checks = {one["check"] for one in ran.json["findings"]}
    assert "networkmanager" not in checks and "rival" not in checks and "hooks" in checks


# --- the system ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "result", "what"),
    [("bpf,-sys_admin", "warning", "CAP_BPF"), ("net_raw", "failure", "CAP_NET_RAW")],
)
def test_capabilities_that_cannot_be_had(ill: Patient, lost: str, result: str, what: str) -> None:
    [found] = ill.troubles(prefix=("setpriv", "--bounding-set", f"-{lost}"))
    assert (found["check"], found["result"]) == ("capabilities", result)
    assert what in found["what"]
    other = ("setpriv", "--bounding-set", "-bpf")  # CAP_SYS_ADMIN does as well
    assert ill.troubles(prefix=other) == []


def test_hooks(ill: Patient, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "autoip"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd {REPOSITORY} && exec {shlex.join(autoip_command())} "$@"\n')
    program.chmod(0o755)
    ill.host.run(
        str(program), "hooks", "install", "--client", "ifupdown", "--program", str(program)
    )
    assert ill.troubles() == []
    # Who may not look where the program is does not call it gone.
    program.parent.chmod(0o700)
    ran = ill.examine("eth0", prefix=NOBODY)
    assert ran.status == 0 and "hooks" not in [one["check"] for one in ran.json["findings"]]
    assert [line for line in ran.json["unread"] if line.startswith("hooks: ")] == [
        f"hooks: {program}: Permission denied; run it as root"
    ]
    program.parent.chmod(0o755)
    hook = "/etc/network/if-up.d/autoip"
    for target, mode in ((hook, "o+w"), ("/etc/autoip/hook", "go+w"), (program.parent, "o+w")):
        ill.host.run("chmod", mode, str(target))
        ill.cure(ill.trouble("hooks", "failure", f"may write {target}"))
    ill.host.run("chown", "nobody", hook)
    ill.cure(ill.trouble("hooks", "failure", f"may write {hook}"))
    # The program that the hooks start goes, and the one that is asked is installed elsewhere.
    gone = tmp_path / "gone"
    ill.host.run(str(program), "hooks", "install", "--client", "ifupdown", "--program", str(gone))
    command = ill.trouble("hooks", "failure", f"for {gone}, which cannot be run")
    ill.cure(f"PATH={program.parent}:$PATH; {command}")
    ill.host.run("rm", "/etc/autoip/hook")
    command = ill.trouble("hooks", "failure", "the script that they call is gone")
    ill.cure(f"PATH={program.parent}:$PATH; {command}")
    # The DHCP client is removed.
    ill.host.run("sh", "-ec", WITHOUT_IFUP)
    command = ill.trouble("hooks", "warning", "for ifupdown, which is gone")
    ill.cure(f"PATH={program.parent}:$PATH; {command}")


WITHOUT_IFUP = """
    mkdir /run/upper /run/work
    mount -t overlay autoip-lab -o lowerdir=/usr/sbin,upperdir=/run/upper,workdir=/run/work /usr/sbin
    rm -f /usr/sbin/ifup
"""
"""In this host's mount namespace alone."""

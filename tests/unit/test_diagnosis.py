"""diagnosis: who is named, when, and how often."""

from __future__ import annotations

import os
import subprocess
from ipaddress import IPv4Address

import pytest

from autoip.core.arp import NO_ADDRESS, ArpPacket, Operation
from autoip.daemon import processes
from autoip.daemon.diagnosis import HOSTS_MAX, Process, Takers, foreign, is_foreign, managers
from autoip.kernel.model import PROTOCOL, Address
from tests.unit.fake_kernel import mac_of

CANDIDATES = [IPv4Address("169.254.1.0") + number for number in range(10)]
PROXY, OTHER = mac_of(1), mac_of(2)


def claim(address: IPv4Address, sha: bytes = PROXY) -> ArpPacket:
    return ArpPacket(Operation.REPLY, sha, address, sha, NO_ADDRESS)


def lost(takers: Takers, *addresses: IPv4Address, sha: bytes = PROXY) -> list[str]:
    said = [takers.conflict(address, claim(address, sha)) for address in addresses]
    return [line for line in said if line is not None]


def test_third_candidate() -> None:
    takers = Takers()
    assert lost(takers, *CANDIDATES[:2]) == []
    [line] = lost(takers, CANDIDATES[2])
    assert line.startswith("02:00:00:00:00:01 claims every address")
    assert all(str(address) in line for address in CANDIDATES[:3])
    assert lost(takers, *CANDIDATES[3:]) == []


def test_one_candidate_again_and_again() -> None:
    assert lost(Takers(), *[CANDIDATES[0]] * 20) == []


def test_each_host_by_itself() -> None:
    takers = Takers()
    assert lost(takers, *CANDIDATES[:2]) == []
    assert lost(takers, *CANDIDATES[:2], sha=OTHER) == []
    assert len(lost(takers, CANDIDATES[2])) == 1
    assert len(lost(takers, CANDIDATES[2], sha=OTHER)) == 1


def test_a_success_between_them() -> None:
    takers = Takers()
    assert lost(takers, *CANDIDATES[:2]) == []
    takers.claimed()
    assert lost(takers, *CANDIDATES[2:4]) == []


def test_who_probes_too_is_no_proxy() -> None:
    takers = Takers()
    for address in CANDIDATES:
        probe = ArpPacket(Operation.REQUEST, PROXY, NO_ADDRESS, bytes(6), address)
        assert takers.conflict(address, probe) is None


def test_a_flood_of_hosts_is_bounded() -> None:
    takers = Takers()
    said = []
    for number in range(5 * HOSTS_MAX):
        said += lost(takers, *CANDIDATES[:3], sha=mac_of(number))
    assert len(said) == HOSTS_MAX
    assert len(takers._taken) <= HOSTS_MAX


def entry(
    label: str | None = "eth0", proto: int | None = None, text: str = "169.254.7.7"
) -> Address:
    return Address(2, IPv4Address(text), 16, 253, label, proto)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (entry(), True),
        (entry("eth0:avahi"), True),
        (entry(proto=3), True),
        (entry(proto=PROTOCOL), False),
        (entry(text="192.0.2.5"), False),
        (entry(text="169.253.7.7"), False),
    ],
)
def test_foreign_addresses(address: Address, expected: bool) -> None:
    assert is_foreign(address) is expected


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("avahi-autoipd: [eth0] bound 169.254.7.7",), "avahi-autoipd"),
        (("/usr/sbin/avahi-autoipd", "eth0"), "avahi-autoipd"),
        (("avahi-autoipd: [eth1] bound 169.254.7.7",), None),
        (("/usr/sbin/avahi-autoipd", "eth01"), None),
        (("avahi-daemon: running [host.local]",), None),
        (("busybox", "zcip", "-f", "eth0", "/etc/zcip.script"), "zcip"),
        (("/sbin/zcip", "eth0", "/etc/zcip.script"), "zcip"),
        (("busybox", "zcip", "eth1", "/etc/zcip.script"), None),
        (("busybox", "udhcpc", "-i", "eth0"), None),
        (("dhcpcd: [manager] [ip4]",), "dhcpcd"),
        (("/usr/sbin/dhcpcd", "-q"), "dhcpcd"),
        (("dhcpcd-ui",), None),
        (("/usr/sbin/NetworkManager", "--no-daemon"), "NetworkManager"),
        (("/lib/systemd/systemd-networkd",), "systemd-networkd"),
        (("/lib/systemd/systemd-networkd-wait-online",), None),
        (("/usr/sbin/connmand", "-n"), "ConnMan"),
        (("vi", "dhcpcd"), None),
        (("",), None),
        ((), None),
    ],
)
def test_programs(arguments: tuple[str, ...], name: str | None) -> None:
    expected = [] if name is None else [f"{name} (process 7)"]
    assert managers("eth0", [Process(7, arguments)]) == expected


def test_one_of_each_kind() -> None:
    running = [Process(pid, ("dhcpcd: [manager]",)) for pid in (5, 6, 7)]
    assert managers("eth0", running) == ["dhcpcd (process 5)"]


@pytest.mark.parametrize(
    ("label", "running", "who"),
    [
        ("eth0:avahi", ("dhcpcd",), "avahi-autoipd, by its label"),
        ("eth0", ("dhcpcd",), "dhcpcd (process 9)"),
        (None, ("dhcpcd",), "dhcpcd (process 9)"),
        ("eth0", ("bash",), "somebody"),
    ],
)
def test_who_put_it(label: str | None, running: tuple[str, ...], who: str) -> None:
    line = foreign(entry(label), "eth0", [Process(9, running)])
    assert line.startswith(f"{who} has put 169.254.7.7/16 on this interface")


def test_processes() -> None:
    """Read from /proc as they are: a child with a title of its own, and not ourselves."""
    title = os.fsdecode(b"dhcpcd: \xff [ip4]")
    with subprocess.Popen([title, "30"], executable="/bin/sleep") as child:
        try:
            found = {process.pid: process.arguments for process in processes.running()}
        finally:
            child.kill()
    assert found[child.pid] == (title, "30")
    assert os.getpid() not in found
    assert all(found.values())

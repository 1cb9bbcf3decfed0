"""Detection of proxy ARP: which host is reported, when, and how often."""

from __future__ import annotations

from ipaddress import IPv4Address

from autoip.core.arp import NO_ADDRESS, ArpPacket, Operation
from autoip.core.proxy_arp import HOSTS_MAX, ProxyArpDetector
from tests.unit.fake_kernel import mac_of

CANDIDATES = [IPv4Address("169.254.1.0") + number for number in range(10)]
PROXY, OTHER = mac_of(1), mac_of(2)


def claim(address: IPv4Address, sha: bytes = PROXY) -> ArpPacket:
    return ArpPacket(Operation.REPLY, sha, address, sha, NO_ADDRESS)


def lost(detector: ProxyArpDetector, *addresses: IPv4Address, sha: bytes = PROXY) -> list[str]:
    reports = [detector.conflict(address, claim(address, sha)) for address in addresses]
    return [line for line in reports if line is not None]


def test_third_candidate() -> None:
    detector = ProxyArpDetector()
    assert lost(detector, *CANDIDATES[:2]) == []
    [line] = lost(detector, CANDIDATES[2])
    assert line.startswith("02:00:00:00:00:01 claims every address")
    assert all(str(address) in line for address in CANDIDATES[:3])
    assert lost(detector, *CANDIDATES[3:]) == []


def test_one_candidate_again_and_again() -> None:
    assert lost(ProxyArpDetector(), *[CANDIDATES[0]] * 20) == []


def test_each_host_by_itself() -> None:
    detector = ProxyArpDetector()
    assert lost(detector, *CANDIDATES[:2]) == []
    assert lost(detector, *CANDIDATES[:2], sha=OTHER) == []
    assert len(lost(detector, CANDIDATES[2])) == 1
    assert len(lost(detector, CANDIDATES[2], sha=OTHER)) == 1


def test_a_success_between_them() -> None:
    detector = ProxyArpDetector()
    assert lost(detector, *CANDIDATES[:2]) == []
    detector.claimed()
    assert lost(detector, *CANDIDATES[2:4]) == []


def test_who_probes_too_is_no_proxy() -> None:
    detector = ProxyArpDetector()
    for address in CANDIDATES:
        probe = ArpPacket(Operation.REQUEST, PROXY, NO_ADDRESS, bytes(6), address)
        assert detector.conflict(address, probe) is None


def test_a_flood_of_hosts_is_bounded() -> None:
    detector = ProxyArpDetector()
    reports = []
    for number in range(5 * HOSTS_MAX):
        reports += lost(detector, *CANDIDATES[:3], sha=mac_of(number))
    assert len(reports) == HOSTS_MAX
    assert len(detector._taken) <= HOSTS_MAX

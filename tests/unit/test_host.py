"""The mirror of the kernel: what it says after which events."""

from __future__ import annotations

from ipaddress import IPv4Address

from autoip.daemon.foreign_default_route import ForeignDefaultRoute
from autoip.daemon.host import Host
from autoip.kernel.arp_socket import OWN_MAX
from autoip.kernel.model import (
    Address,
    AddressAdded,
    AddressRemoved,
    LinkChanged,
    LinkRemoved,
    Resync,
)
from tests.unit.fake_kernel import link_of, mac_of

A, B = IPv4Address("169.254.7.7"), IPv4Address("169.254.8.8")


class Idle:
    """A network that is not asked."""


class Served:
    """An interface of the process."""

    def __init__(self, candidate: IPv4Address | None, *put: tuple[int, IPv4Address]) -> None:
        self.candidate = candidate
        self._put = put

    def has_put(self, index: int, address: IPv4Address) -> bool:
        return (index, address) in self._put


def host() -> Host:
    return Host(ForeignDefaultRoute(Idle(), lambda: None))  # type: ignore[arg-type]


def address(index: int, value: IPv4Address) -> Address:
    return Address(index, value, 16, 253, None, None)


def test_links() -> None:
    mirror = host()
    assert mirror.link("eth0") is None
    mirror.apply(LinkChanged(link_of(2)))
    mirror.apply(LinkChanged(link_of(3, "eth1")))
    assert mirror.link("eth0") == link_of(2)
    # A link of the same name that came later is the one that is meant.
    mirror.apply(LinkChanged(link_of(7)))
    assert mirror.link("eth0") == link_of(7)
    mirror.apply(LinkRemoved(2))
    assert mirror.link("eth0") == link_of(7)
    mirror.apply(LinkChanged(link_of(7, "other")))
    assert mirror.link("eth0") is None
    mirror.apply(Resync((link_of(4),), ()))
    assert mirror.link("eth0") == link_of(4) and mirror.link("eth1") is None


def test_hardware_addresses() -> None:
    mirror = host()
    mirror.apply(LinkChanged(link_of(2)))
    mirror.apply(LinkChanged(link_of(3, hardware_type=512)))  # cannot be confused
    assert mirror.macs == {mac_of(2)}
    assert mirror.is_sibling(mac_of(2)) and not mirror.is_sibling(mac_of(3))
    mirror.apply(LinkChanged(link_of(2, mac=mac_of(9))))
    assert mirror.macs == {mac_of(9)}
    mirror.apply(LinkRemoved(2))
    assert mirror.macs == frozenset()
    links = [link_of(index, f"veth{index}") for index in range(1, OWN_MAX + 3)]
    mirror.apply(Resync((*reversed(links),), ()))
    assert mirror.macs == {link.mac for link in links[:OWN_MAX]}


def test_addresses() -> None:
    mirror = host()
    assert mirror.apply(AddressAdded(address(2, A)))
    assert not mirror.apply(AddressAdded(address(2, A)))  # a change of it
    assert mirror.apply(AddressAdded(address(3, A)))
    assert mirror.addresses(2) == [address(2, A)]
    assert not mirror.apply(AddressRemoved(address(2, A)))
    assert mirror.addresses(2) == [] and mirror.addresses(3) == [address(3, A)]
    mirror.apply(AddressRemoved(address(2, A)))  # once more: harmless
    assert mirror.apply(AddressAdded(address(2, A)))
    mirror.apply(Resync((), (address(5, B),)))
    assert [mirror.addresses(index) for index in (2, 3, 5)] == [[], [], [address(5, B)]]


def test_an_address_is_taken() -> None:
    mirror = host()
    one, other = Served(A, (2, A)), Served(None)
    mirror.join(one)
    mirror.join(other)
    # By the candidate of a sibling, not by one's own.
    assert mirror.is_taken(A, other) and not mirror.is_taken(A, one)
    # By an address of the host, unless it is one's own.
    mirror.apply(AddressAdded(address(2, A)))
    assert not mirror.is_taken(A, one)
    mirror.apply(AddressAdded(address(5, A)))
    assert mirror.is_taken(A, one)
    assert not mirror.is_taken(B, one)
    mirror.apply(Resync((), ()))
    mirror.leave(one)
    assert not mirror.is_taken(A, other)

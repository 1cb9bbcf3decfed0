"""The mirror of the kernel: what this host has, as far as the kernel has reported it.

`apply` takes the events; the other methods answer questions. The interfaces of this process join, so that
no two of them use, or probe for, one address.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Protocol, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.daemon.foreign_default_route import ForeignDefaultRoute
from autoip.kernel.arp_socket import OWN_MAX
from autoip.kernel.model import (
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
    Resync,
)


class Served(Protocol):
    """An interface that this process serves."""

    @property
    def candidate(self) -> IPv4Address | None:
        """The address that the interface probes for or holds."""

    def has_put(self, index: int, address: IPv4Address) -> bool:
        """Return whether the address on the interface `index` was put there by this interface."""


@final
class Host:
    """Links, addresses, hardware addresses, and somebody else's default route.

    Args:
        foreign_default_route: gets each event.
    """

    macs: frozenset[bytes]
    """The hardware addresses of this host's interfaces, no more than the ARP sockets can take."""

    def __init__(self, foreign_default_route: ForeignDefaultRoute) -> None:
        self.macs = frozenset()
        self.foreign_default_route = foreign_default_route
        self._links: dict[int, Link] = {}
        self._addresses: dict[tuple[int, IPv4Address], Address] = {}
        self._served: list[Served] = []
        self._autoip_links: frozenset[int] | None = None  # see `autoip_links`

    def apply(self, event: Event) -> bool:
        """Apply an event of the kernel. Return whether it adds an address that was not there before."""
        self.foreign_default_route.happened(event)
        new = False
        self._autoip_links = None
        match event:
            case LinkChanged(link=link):
                self._links[link.index] = link
            case LinkRemoved(index=index):
                self._links.pop(index, None)
            case AddressAdded(address=address):
                new = (address.index, address.address) not in self._addresses
                self._addresses[address.index, address.address] = address
            case AddressRemoved(address=address):
                self._addresses.pop((address.index, address.address), None)
            case Resync(links=links, addresses=addresses):
                self._links = {link.index: link for link in links}
                self._addresses = {(a.index, a.address): a for a in addresses}
        if isinstance(event, LinkChanged | LinkRemoved | Resync):
            # Beyond the limit the newest count as other hosts'.
            own = [link.mac for _, link in sorted(self._links.items()) if link.speaks_arp]
            self.macs = frozenset(own[:OWN_MAX])
        return new

    @property
    def links(self) -> list[Link]:
        """All links."""
        return [*self._links.values()]

    @property
    def autoip_links(self) -> frozenset[int]:
        """The links that have an address of autoip, whichever process serves them."""
        if self._autoip_links is None:
            ours = {one.index for one in self._addresses.values() if one.ours}
            ready = (index for index in ours if index in self._links and self._links[index].ready)
            self._autoip_links = frozenset(ready)
        return self._autoip_links

    def link_of(self, index: int) -> Link | None:
        """Return the link of that number."""
        return self._links.get(index)

    def has(self, address: IPv4Address) -> bool:
        """Return whether this host has the address."""
        return any(there == address for _, there in self._addresses)

    def link(self, name: str) -> Link | None:
        """Return the newest link of that name; None: there is no such link."""
        return {link.name: link for link in self._links.values()}.get(name)

    def master(self, link: Link) -> str:
        """Return the name of the bridge, bond or team that has the link as a port; empty: not a port."""
        if not link.is_port or link.master is None:
            return ""
        master = self._links.get(link.master)
        return master.name if master is not None else f"interface {link.master}"

    def addresses(self, index: int) -> list[Address]:
        """Return the IPv4 addresses of the interface `index`, whoever set them."""
        return [address for address in self._addresses.values() if address.index == index]

    def with_link_local(self) -> list[Link]:
        """Return the links that have a link-local address, whoever set it."""
        found = {a.index for a in self._addresses.values() if a.address in LINK_LOCAL_NETWORK}
        return [link for index, link in sorted(self._links.items()) if index in found]

    def others(self, link: Link | None, served: Served) -> list[Address]:
        """Return the addresses of a link that are not those that this daemon has put there for `served`."""
        there = self.addresses(link.index) if link is not None else ()
        return [a for a in there if not served.has_put(a.index, a.address)]

    def is_sibling(self, mac: bytes) -> bool:
        """Return whether a hardware address is one of this host's."""
        return mac in self.macs

    def join(self, served: Served) -> None:
        """Reserve for `served` the address that it holds or probes for, until `leave`."""
        self._served.append(served)

    def leave(self, served: Served) -> None:
        """Undo `join`."""
        self._served.remove(served)

    def is_taken(self, address: IPv4Address, asking: Served) -> bool:
        """Return whether this host has, or probes for, the address for another reason than `asking`."""
        return any(
            value == address and not asking.has_put(index, value)
            for index, value in self._addresses
        ) or any(other.candidate == address for other in self._served if other is not asking)

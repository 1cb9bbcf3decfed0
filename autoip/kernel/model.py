"""Links, addresses and what happens to them, as values. No input and no output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from autoip.core.constants import LINK_LOCAL_NETWORK

PROTOCOL = 169
"""IFA_PROTO, FRA_PROTOCOL and rtm_protocol of all that is ours; iproute2 has no name for it."""

# include/uapi/linux/if.h
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP = 0x1, 0x8, 0x40, 0x80
IFF_LOWER_UP, IFF_DORMANT = 0x10000, 0x20000
# include/uapi/linux/if_arp.h
ARPHRD_ETHER = 1
# include/uapi/linux/rtnetlink.h
RT_SCOPE_HOST = 254


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it."""

    index: int
    name: str
    """As os.fsdecode returns it: any bytes but '/', ':' and white space are possible."""
    mac: bytes
    """Link-layer address; 6 bytes for Ethernet, other lengths (also 0) for others."""
    hardware_type: int
    """ARPHRD_*, the ar$hrd of RFC 826: 1 is Ethernet."""
    flags: int
    """IFF_*."""
    kind: str | None
    """Driver kind of a virtual interface ("veth", "bridge", "vlan"); None for hardware."""
    master: int | None
    """Index of the bridge, bond, team or VRF that has this interface."""
    port_kind: str | None
    """Driver kind of the master ("bridge", "bond", "team", "openvswitch", "vrf"), if it has one."""
    altnames: tuple[str, ...] = ()
    """Alternative names (Linux 5.5)."""
    carrier_changes: int = 0
    """How often the carrier came or went: reveals a flap that is too short for an event."""

    @property
    def up(self) -> bool:
        """Whether the administrator set it up."""
        return bool(self.flags & IFF_UP)

    @property
    def ready(self) -> bool:
        """Whether frames can pass: up, with carrier, and not waiting for 802.1X or Wi-Fi."""
        wanted = IFF_UP | IFF_RUNNING | IFF_LOWER_UP
        return self.flags & (wanted | IFF_DORMANT) == wanted

    @property
    def is_port(self) -> bool:
        """Whether a bridge, bond or team gets its frames, so that an address here would be useless.

        A VRF is a routing table: its interfaces keep their addresses and their frames.
        """
        return self.master is not None and self.port_kind != "vrf"

    @property
    def speaks_arp(self) -> bool:
        """Whether it is Ethernet or like it, so that RFC 826 and RFC 5227 apply."""
        return (
            self.hardware_type == ARPHRD_ETHER
            and len(self.mac) == 6
            and not self.flags & (IFF_LOOPBACK | IFF_NOARP)
        )


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of an interface."""

    index: int
    address: IPv4Address
    prefixlen: int
    scope: int
    """RT_SCOPE_*: 0 global, 253 link."""
    label: str | None
    proto: int | None
    """IFA_PROTO: what set it; None: unknown, or before Linux 5.18."""

    @property
    def ours(self) -> bool:
        """Whether a process of autoip has set it, as far as the kernel keeps that."""
        marked = self.proto == PROTOCOL or (self.label or "").endswith(":autoip")
        return marked and self.address in LINK_LOCAL_NETWORK

    @property
    def routable(self) -> bool:
        """Whether it makes a link-local address unnecessary (RFC 3927 section 1.9)."""
        return self.scope < RT_SCOPE_HOST and not (
            self.address in LINK_LOCAL_NETWORK
            or self.address.is_loopback
            or self.address.is_unspecified
        )


@dataclass(frozen=True, slots=True)
class Route:
    """What matters here of an IPv4 route."""

    index: int | None
    """Of the interface; None: none, or several."""
    prefixlen: int
    table: int
    proto: int
    """RTPROT_*: what set it."""
    unicast: bool = True
    """Whether it leads somewhere: it is not for local addresses, and does not refuse what it matches."""
    destination: IPv4Address | None = None
    """The first address of the network that it leads to; None: 0.0.0.0."""
    via: str = ""
    """The router in the words of `ip route`, "192.0.2.1" or "inet6 fe80::1"; empty: it is on the link."""
    metric: int = 0
    source: IPv4Address | None = None
    """The address that packets by it have if the program chooses none."""

    @property
    def ours(self) -> bool:
        return self.proto == PROTOCOL

    @property
    def network(self) -> IPv4Network:
        """Where it leads to."""
        return IPv4Network((self.destination or 0, self.prefixlen))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the kernel knows of another host's hardware address."""

    index: int
    address: IPv4Address
    mac: bytes


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link appeared, or something in `Link` changed."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkRemoved:
    """A link is gone: deleted, unplugged, or moved to another network namespace."""

    index: int


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """An address was added, or its lifetime or label changed."""

    address: Address


@dataclass(frozen=True, slots=True)
class AddressRemoved:
    """An address is gone."""

    address: Address


@dataclass(frozen=True, slots=True)
class RouteAdded:
    """Somebody else's default route was added, or changed."""


@dataclass(frozen=True, slots=True)
class RouteRemoved:
    """A default route, or a route of ours, was removed."""

    route: Route


@dataclass(frozen=True, slots=True)
class Resync:
    """Messages were lost: these are all links and addresses.

    Events that follow can be older than this; the newest ones come last, as always.
    """

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]


Event = (
    LinkChanged | LinkRemoved | AddressAdded | AddressRemoved | RouteAdded | RouteRemoved | Resync
)


def ethernet_like(links: Sequence[Link]) -> list[Link]:
    """Return the links to choose from when the user names none.

    They speak ARP; ports of a bridge, bond or team are left out, and interfaces of containers.
    """
    return [
        link
        for link in links
        if link.speaks_arp
        and not link.is_port
        and link.kind != "veth"
        and not _is_docker(link.name)
    ]


def _is_docker(name: str) -> bool:
    """Return whether Docker names interfaces so: docker0, docker_gwbridge, br- and 12 hexadecimal digits."""
    if name.startswith("br-"):
        return len(name) == 15 and all(digit in "0123456789abcdef" for digit in name[3:])
    return name.startswith("docker")

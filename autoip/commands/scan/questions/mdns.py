"""Multicast DNS (RFC 6762): which services there are (RFC 6763), and the names of addresses."""

from __future__ import annotations

from autoip.commands.scan.questions import Answer, dns

TYPE_CHECKING = False
if TYPE_CHECKING:  # a scan must start fast
    from collections.abc import Iterable

PORT, GROUP, TTL = 5353, 0xE00000FB, 255

_ALL = "_services._dns-sd._udp.local"
_TYPES = (
    "_workstation",
    "_ssh",
    "_http",
    "_ipp",
    "_printer",
    "_axis-video",
    "_lxi",
    "_device-info",
)
NAMES_MAX = 16
"""Addresses in one question of `reverse`."""


def question() -> bytes:
    """Ask for all types of services, and for the services of devices."""
    return dns.questions([_ALL, *(f"{kind}._tcp.local" for kind in _TYPES)], dns.UNICAST)


def reverse(addresses: Iterable[int]) -> bytes:
    """Ask for the names of these addresses, at most NAMES_MAX."""
    return dns.questions(map(dns.reversed_name, addresses), dns.UNICAST)


def answer(payload: bytes) -> Answer | None:
    """Read a response: hosts are the names of addresses and the targets of services."""
    hosts, instances, kinds = [], [], []
    for owner, kind, data in dns.records(payload):
        if kind == dns.A:
            hosts.append(owner)
        elif kind == dns.SRV or owner.endswith(dns.ADDRESSES):
            hosts.append(data)
        elif owner == _ALL:
            kinds.append(data.removesuffix(".local"))
        elif owner.startswith("_") and data.endswith(f".{owner}"):
            kinds.append(owner.removesuffix(".local"))
            instances.append(data.removesuffix(f".{owner}"))
    if not hosts and not instances and not kinds:
        return None
    names = [name.removesuffix(".local") for name in hosts] + instances
    return Answer(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(kinds)))

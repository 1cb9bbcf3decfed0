"""Routes to what is reached on a link without a router: of scope link (RFC 3927 section 2.6.2).

Link-local destinations from a routable address: ``169.254.0.0/16 dev N scope link src ROUTABLE metric
2000+N``, before the route of the interface's own link-local address, which is demoted meanwhile (metric
3000+N, see `addresses`), and behind the routes of other interfaces' addresses (metric 1000+M). So new connections
by this interface have the routable address as their source (section 1.9), connections under way keep their
source, and destinations on the links of siblings are reached there.

Everything from a link-local address: ``default dev N scope link src ADDRESS metric 1690000000+N``, a
metric behind everybody else's. It is also in the address's own table (see `source_routing`), so that of
several interfaces each answers on its own link.

With an address the kernel removes the routes whose source it is.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import PROTOCOL, Link
from autoip.kernel.netlink import Request, Requests

METRIC_BASE = 2000
DEFAULT_METRIC_BASE = 1690000000


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where routes of this kind lead, and their metric less the index of the interface."""

    network: IPv4Network
    metric: int


_LINK_LOCAL = _Kind(LINK_LOCAL_NETWORK, METRIC_BASE)
_DEFAULT = _Kind(IPv4Network("0.0.0.0/0"), DEFAULT_METRIC_BASE)


@final
class OnlinkRoutes:
    """At most one of each kind for each interface.

    Args:
        requests: to the kernel.
        table_base: interface N has the table `table_base` + N.

    Raises:
        KernelRefused: from each coroutine.
    """

    def __init__(self, requests: Requests, table_base: int) -> None:
        self._requests = requests
        self._table_base = table_base

    async def set(self, link: Link, source: IPv4Address) -> None:
        """Set the route to link-local destinations, with this source instead of any other.

        Raises:
            KernelRefused: for instance if the address is not on the interface any more.
        """
        await self._set(_LINK_LOCAL, link, source, rtnetlink.RT_TABLE_MAIN)

    async def remove(self, index: int) -> None:
        """Undo `set`."""
        await self._remove(_LINK_LOCAL, index, rtnetlink.RT_TABLE_MAIN)

    async def set_default(self, link: Link, source: IPv4Address) -> None:
        """Set the default route, with this source instead of any other."""
        for table in self._tables(link.index):
            await self._set(_DEFAULT, link, source, table)

    async def remove_default(self, index: int) -> None:
        """Undo `set_default`."""
        for table in self._tables(index):
            await self._remove(_DEFAULT, index, table)

    def _tables(self, index: int) -> tuple[int, int]:
        return rtnetlink.RT_TABLE_MAIN, self._table_base + index

    async def _set(self, kind: _Kind, link: Link, source: IPv4Address, table: int) -> None:
        what = f"route {kind.network} by {link.name} from {source}"
        request = _route(rtnetlink.RTM_NEWROUTE, kind, link.index, table, what, source)
        await self._requests.send(request, netlink.REPLACE)

    async def _remove(self, kind: _Kind, index: int, table: int) -> None:
        what = f"remove the route to {kind.network} by interface {index}"
        await self._requests.delete(_route(rtnetlink.RTM_DELROUTE, kind, index, table, what))


def _route(
    request: int, kind: _Kind, index: int, table: int, what: str, source: IPv4Address | None = None
) -> Request:
    fields = {
        "family": socket.AF_INET,
        "dst_len": kind.network.prefixlen,
        "proto": PROTOCOL,
        "scope": rtnetlink.RT_SCOPE_LINK,
        "type": rtnetlink.RTN_UNICAST,
    }
    attributes: list[tuple[str, object]] = [
        ("RTA_TABLE", table),
        ("RTA_OIF", index),
        ("RTA_PRIORITY", kind.metric + index),
    ]
    if kind.network.prefixlen:
        attributes.append(("RTA_DST", kind.network.network_address.packed))
    if source is not None:
        attributes.append(("RTA_PREFSRC", source.packed))
    return Request(what, request, fields, attributes)

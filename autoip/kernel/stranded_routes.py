"""Routes that the kernel would have removed with the last other address of an interface, without ours there.

With the last IPv4 address of an interface the kernel removes all routes by it. Our address is one as well, so the
routes of a lease outlive it: `default via ROUTER`, without an address that the router would answer. `remove` does what
the kernel would have done, but for what our address carries: see docs/decisions/stranded-routes.md.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, final

from autoip.kernel import rtnetlink
from autoip.kernel.addresses import Addresses
from autoip.kernel.model import PROTOCOL
from autoip.kernel.netlink import Request, Requests


@final
class StrandedRoutes:
    """The stranded routes of this host.

    Args:
        requests: to the kernel.
        addresses: of this host.
    """

    def __init__(self, requests: Requests, addresses: Addresses) -> None:
        self._requests = requests
        self._addresses = addresses

    async def remove(self, index: int, ours: IPv4Address) -> list[str]:
        """Remove the stranded routes by the interface `index`, of all tables.

        Call this once, when the last address but `ours` is gone. It does nothing if ours is gone too.

        Return what was removed, in words.

        Raises:
            KernelRefused: the routes cannot be listed, or one cannot be removed.
        """
        # First the routes, so that later ones are not among them. Then the addresses: if one has come
        # meanwhile, or just before, the same program may have set the routes without a gateway.
        request = Request("list routes", rtnetlink.RTM_GETROUTE, {"family": int(socket.AF_INET)})
        routes = [
            route
            for route in await self._requests.dump(request)
            if route.get_attr("RTA_OIF") == index and _is_plain(route)
        ]
        there = {found.address for found in await self._addresses.all() if found.index == index}
        if ours not in there:
            return []
        stranded = _stranded(routes, ours, alone=there == {ours})
        for route in stranded:
            await self._requests.delete(_deletion(route, index))
        return [_text(route) for route in stranded]


def _is_plain(route: Any) -> bool:
    """Return whether a route is somebody else's, and has its next hop in itself."""
    return (
        route["family"] == socket.AF_INET
        and route["proto"] != PROTOCOL
        and route["type"] == rtnetlink.RTN_UNICAST
        and _table(route) != rtnetlink.RT_TABLE_LOCAL
        # The kernel does not remove routes by a next hop object either; a gateway by IPv6 is not affected.
        and route.get_attr("RTA_NH_ID") is None
        and route.get_attr("RTA_VIA") is None
    )


def _stranded(routes: Sequence[Any], ours: IPv4Address, *, alone: bool) -> list[Any]:
    """Return those of the routes by one interface that nothing carries any more.

    Args:
        routes: those that are plain.
        ours: the address that is left.
        alone: whether it is the only one.
    """
    on_link = [
        route
        for route in routes
        if route.get_attr("RTA_GATEWAY") is None
        and (route["proto"] == rtnetlink.RTPROT_KERNEL or not alone)
    ]
    reached = [_network(route) for route in on_link]

    def stays(route: Any) -> bool:
        if route.get_attr("RTA_PREFSRC") == ours.packed:
            return True
        if (gateway := route.get_attr("RTA_GATEWAY")) is None:
            return any(route is other for other in on_link)
        return any(IPv4Address(gateway) in network for network in reached)

    return [route for route in routes if not stays(route)]


def _table(route: Any) -> int:
    table = route.get_attr("RTA_TABLE")
    return int(route["table"] if table is None else table)


def _network(route: Any) -> IPv4Network:
    return IPv4Network((route.get_attr("RTA_DST") or bytes(4), route["dst_len"]))


def _deletion(route: Any, index: int) -> Request:
    """The request that removes this route, and no other one to the same destination."""
    fields = {name: route[name] for name in ("family", "dst_len", "tos", "proto", "scope", "type")}
    attributes: list[tuple[str, object]] = [("RTA_TABLE", _table(route)), ("RTA_OIF", index)]
    names = ("RTA_DST", "RTA_GATEWAY", "RTA_PRIORITY", "RTA_PREFSRC")
    values = ((name, route.get_attr(name)) for name in names)
    attributes.extend((name, value) for name, value in values if value is not None)
    return Request(f"remove {_text(route)}", rtnetlink.RTM_DELROUTE, fields, attributes)


def _text(route: Any) -> str:
    """Return the route as `ip route` prints it."""
    words = [str(_network(route)) if route["dst_len"] else "default"]
    if (gateway := route.get_attr("RTA_GATEWAY")) is not None:
        words.append(f"via {IPv4Address(gateway)}")
    if (table := _table(route)) != rtnetlink.RT_TABLE_MAIN:
        words.append(f"table {table}")
    return " ".join(words)

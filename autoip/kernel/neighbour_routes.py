"""Routes to link-local neighbours, where several links lead to 169.254/16: each is reached on its own link.

``X dev N scope link src SOURCE`` in the table 169254000, for all interfaces together, and one rule that looks it up,
with priority 1691: after the rules of our addresses (see `source_routing`), so that a client that is bound to an
address stays on that address's link. The rule is there while the table has routes. Several processes share both;
each adds and removes routes by its own interfaces.

With the source address, and with the interface, the kernel removes the routes.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address
from typing import final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import PROTOCOL, Neighbour
from autoip.kernel.netlink import Request, Requests
from autoip.kernel.netlink_filter import (
    assemble,
    attach,
    attribute_begins,
    byte,
    half,
    of_type,
)
from autoip.kernel.source_routing import TABLE_BASE

TABLE = TABLE_BASE
"""No interface has the number 0."""
RULE_PRIORITY = 1691

# include/uapi/linux/neighbour.h
_NUD_FAILED, _NDA_DST, _NDMSG_LENGTH = 0x20, 1, 12
_LINK_LOCAL = int(LINK_LOCAL_NETWORK.network_address) >> 16
# Struct ndmsg: family, padding (3 bytes), ifindex, state (2 bytes), flags, type.
_GIVEN_UP = [
    of_type(rtnetlink.RTM_NEWNEIGH),
    byte(0, socket.AF_INET),
    half(8, _NUD_FAILED),
    attribute_begins(_NDMSG_LENGTH, _NDA_DST, _LINK_LOCAL),
]


@final
class NeighbourRoutes:
    """The routes of all interfaces.

    Args:
        requests: to the kernel.

    Raises:
        KernelRefused: from each coroutine.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def add(self, index: int, address: IPv4Address, source: IPv4Address) -> None:
        """Reach `address` by the interface `index` from `source`, and by no other one."""
        what = f"route {address} by interface {index}"
        route = _route(rtnetlink.RTM_NEWROUTE, index, address, what, source)
        # A kernel without rules has only one table: there the route is as good.
        outcomes = await self._requests.send_together(
            (_rule(rtnetlink.RTM_NEWRULE), netlink.CREATE), (route, netlink.REPLACE)
        )
        for outcome, harmless in zip(
            outcomes, ((errno.EEXIST, *netlink.NOT_BUILT), ()), strict=True
        ):
            if outcome and outcome not in harmless:
                raise KernelRefused(outcome, what)

    async def remove(self, index: int, address: IPv4Address) -> None:
        """Undo `add`, unless another interface has the route by now."""
        what = f"remove the route to {address} by interface {index}"
        await self._requests.delete(_route(rtnetlink.RTM_DELROUTE, index, address, what))

    async def found(self) -> list[tuple[int, IPv4Address]]:
        """Return interface and destination of each route."""
        fields = {"family": socket.AF_INET, "proto": PROTOCOL}
        request = Request("list routes", rtnetlink.RTM_GETROUTE, fields)
        routes = map(rtnetlink.read_route, await self._requests.dump(request))
        return [
            (route.index, route.destination)
            for route in routes
            if route is not None
            and route.index is not None
            and route.destination is not None
            and (route.table, route.prefixlen, route.proto) == (TABLE, 32, PROTOCOL)
        ]

    async def clear(self, *indexes: int) -> None:
        """Remove all routes by these interfaces, and the rule if no route is left."""
        found = await self.found()
        for index, address in found:
            if index in indexes:
                await self.remove(index, address)
        if all(index in indexes for index, _ in found):
            await self._requests.delete(_rule(rtnetlink.RTM_DELRULE))

    async def known(self) -> list[Neighbour]:
        """Return the link-local neighbours whose hardware address the kernel knows."""
        fields = {"family": int(socket.AF_INET)}
        request = Request("list neighbours", rtnetlink.RTM_GETNEIGH, fields)
        messages = await self._requests.dump(request)
        found = [rtnetlink.read_neighbour(one) for one in messages if one["state"] != _NUD_FAILED]
        return [one for one in found if one is not None and one.address in LINK_LOCAL_NETWORK]


@final
class GivenUp:
    """Reports the link-local neighbours for which the kernel has asked in vain, and wakes nobody for anything else.

    Raises:
        KernelRefused: it cannot be opened.
    """

    def __init__(self) -> None:
        program = assemble([_GIVEN_UP])
        self._socket = netlink.Socket(
            rtnetlink.ROUTE, rtnetlink.RTMGRP_NEIGH, lambda opened: attach(opened, program)
        )

    async def next(self) -> list[tuple[int, IPv4Address]]:
        """Wait for some; return interface and address of each.

        Raises:
            OSError: messages were lost, which may be many; or EBADF when it is closed.
        """
        messages = await self._socket.news()
        return [
            (message["index"], IPv4Address(address))
            for message in messages
            if (address := message.get_attr("NDA_DST")) is not None and len(address) == 4
        ]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _rule(kind: int) -> Request:
    fields = {"family": socket.AF_INET, "action": rtnetlink.FR_ACT_TO_TBL}
    attributes = [
        ("FRA_PRIORITY", RULE_PRIORITY),
        ("FRA_TABLE", TABLE),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return Request("change the rule for neighbours", kind, fields, attributes)


def _route(
    kind: int, index: int, address: IPv4Address, what: str, source: IPv4Address | None = None
) -> Request:
    fields = {
        "family": socket.AF_INET,
        "dst_len": 32,
        "proto": PROTOCOL,
        "scope": rtnetlink.RT_SCOPE_LINK,
        "type": rtnetlink.RTN_UNICAST,
    }
    attributes: list[tuple[str, object]] = [
        ("RTA_DST", address.packed),
        ("RTA_OIF", index),
        ("RTA_TABLE", TABLE),
    ]
    if source is not None:
        attributes.append(("RTA_PREFSRC", source.packed))
    return Request(what, kind, fields, attributes)

"""Link-local destinations from a routable address: a route in the main table (RFC 3927 section 2.6.2).

``169.254.0.0/16 dev N scope link src ROUTABLE metric 500+N``: before the route that comes with a
link-local address of ours (metric 1000+N), so new connections of ours have the routable address as
their source (section 1.9), and what is under way keeps the one that it has.  The kernel takes the
route away with the address that is its source.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import final

from autoip import rtnl
from autoip.constants import LINK_LOCAL_NETWORK
from autoip.links import PROTOCOL, Link
from autoip.rtnl import Request, Requests

METRIC_BASE = 500


@final
class OnlinkRoutes:
    """At most one such route for each interface."""

    def __init__(self, requests: Requests) -> None:
        """Asks for them by `requests`."""
        self._requests = requests

    async def set(self, link: Link, source: IPv4Address) -> None:
        """Have the route, with this source; one with another source is replaced.

        Raises KernelRefused, for instance if the interface has no such address any more.
        """
        what = f"route {LINK_LOCAL_NETWORK} by {link.name} from {source}"
        request = _route(rtnl.RTM_NEWROUTE, link.index, what, source)
        await self._requests.send(request, rtnl.REPLACE)

    async def remove(self, index: int) -> bool:
        """Return whether there was one. Raises KernelRefused."""
        what = f"remove the route to {LINK_LOCAL_NETWORK} by interface {index}"
        return await self._requests.delete(_route(rtnl.RTM_DELROUTE, index, what))


def _route(kind: int, index: int, what: str, source: IPv4Address | None = None) -> Request:
    fields = {
        "family": socket.AF_INET,
        "dst_len": LINK_LOCAL_NETWORK.prefixlen,
        "table": rtnl.RT_TABLE_MAIN,
        "proto": PROTOCOL,
        "scope": rtnl.RT_SCOPE_LINK,
        "type": rtnl.RTN_UNICAST,
    }
    attributes: list[tuple[str, object]] = [
        ("RTA_DST", LINK_LOCAL_NETWORK.network_address.packed),
        ("RTA_OIF", index),
        ("RTA_PRIORITY", METRIC_BASE + index),
    ]
    if source is not None:
        attributes.append(("RTA_PREFSRC", source.packed))
    return Request(what, kind, fields, attributes)

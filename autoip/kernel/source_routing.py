"""Replies from a link-local address leave by its own interface: a rule and a table for each address.

For the address A on interface number N, a rule ``from A lookup 169254000+N``, priority 1690, and in that
table ``169.254.0.0/16 dev N scope link src A``. Without it a reply from the second interface's
address leaves by the first interface, whose metric is lower.

The table: decimal 169254000 + N (N < 2^31 fits 32 bits), far from the reserved 253 to 255, from the small
numbers that people choose (systemd's VRFs, for one), from 51820 (wg-quick) and 1000 + N (Android,
systemd-networkd's examples). The priority: after l3mdev (1000), so that a VRF decides first, and before
5210 and up (Tailscale), 32764 (wg-quick) and main (32766), any of which can have a route for
everything: link-local traffic must not end in a tunnel. The rule matches one source address and the
table has one link-local prefix, so other traffic is not affected.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address
from typing import final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import PROTOCOL, Link
from autoip.kernel.netlink import Request, Requests

TABLE_BASE = 169254000
RULE_PRIORITY = 1690


@final
class SourceRules:
    """The rules and routes of our addresses.

    Args:
        requests: to the kernel.

    Raises:
        KernelRefused: from each coroutine.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def add(self, link: Link, address: IPv4Address) -> bool:
        """Make replies from `address` leave by `link`. May be called again.

        Return False, with nothing done, if the kernel has no rules.
        """
        what = f"add a rule for {address} on {link.name}"
        try:
            await self._create(_rule(rtnetlink.RTM_NEWRULE, link.index, address, what))
        except KernelRefused as problem:
            if problem.errno not in netlink.NOT_BUILT:
                raise
            # Without CONFIG_IP_MULTIPLE_TABLES the route would end in the main table.
            return False
        what = f"add a route for {address} on {link.name}"
        await self._create(_route(rtnetlink.RTM_NEWROUTE, link.index, address, what))
        return True

    async def remove(self, index: int, address: IPv4Address) -> None:
        """Undo `add`."""
        what = f"remove the rule for {address} on interface {index}"
        await self._requests.delete(_rule(rtnetlink.RTM_DELRULE, index, address, what))
        what = f"remove the route for {address} on interface {index}"
        await self._requests.delete(_route(rtnetlink.RTM_DELROUTE, index, address, what))

    async def sweep(self, living: AbstractSet[tuple[int, IPv4Address]]) -> None:
        """Remove those of all addresses but `living` (interface, address)."""
        for index, address in await self._rules() - living:
            await self.remove(index, address)
        fields = {"family": socket.AF_INET, "proto": PROTOCOL}
        routes = await self._requests.dump(Request("list routes", rtnetlink.RTM_GETROUTE, fields))
        for route in routes:
            source = route.get_attr("RTA_PREFSRC")
            index = (route.get_attr("RTA_TABLE") or 0) - TABLE_BASE
            if source is not None and index > 0 and (index, IPv4Address(source)) not in living:
                await self.remove(index, IPv4Address(source))

    async def _create(self, request: Request) -> None:
        try:
            await self._requests.send(request, netlink.CREATE)
        except KernelRefused as problem:
            # EEXIST: a crashed instance left the same.
            if problem.errno != errno.EEXIST:
                raise

    async def _rules(self) -> set[tuple[int, IPv4Address]]:
        """Return interface and address of each rule that is ours."""
        request = Request("list rules", rtnetlink.RTM_GETRULE, {"family": int(socket.AF_INET)})
        try:
            rules = await self._requests.dump(request)
        except KernelRefused as problem:
            if problem.errno in netlink.NOT_BUILT:
                return set()
            raise
        return {
            (rule.get_attr("FRA_TABLE") - TABLE_BASE, IPv4Address(rule.get_attr("FRA_SRC")))
            for rule in rules
            if rule.get_attr("FRA_PROTOCOL") == PROTOCOL
            and rule.get_attr("FRA_PRIORITY") == RULE_PRIORITY
            and rule["src_len"] == 32
            and rule.get_attr("FRA_TABLE", 0) > TABLE_BASE
        }


def _rule(kind: int, index: int, address: IPv4Address, what: str) -> Request:
    fields = {"family": socket.AF_INET, "src_len": 32, "action": rtnetlink.FR_ACT_TO_TBL}
    attributes = [
        ("FRA_SRC", address.packed),
        ("FRA_PRIORITY", RULE_PRIORITY),
        ("FRA_TABLE", TABLE_BASE + index),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return Request(what, kind, fields, attributes)


def _route(kind: int, index: int, address: IPv4Address, what: str) -> Request:
    fields = {
        "family": socket.AF_INET,
        "dst_len": LINK_LOCAL_NETWORK.prefixlen,
        "proto": PROTOCOL,
        "scope": rtnetlink.RT_SCOPE_LINK,
        "type": rtnetlink.RTN_UNICAST,
    }
    attributes = [
        ("RTA_DST", LINK_LOCAL_NETWORK.network_address.packed),
        ("RTA_OIF", index),
        ("RTA_PREFSRC", address.packed),
        ("RTA_TABLE", TABLE_BASE + index),
    ]
    return Request(what, kind, fields, attributes)

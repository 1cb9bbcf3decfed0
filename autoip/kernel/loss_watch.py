"""Watch what belongs to our addresses: the rule, the source route, the connected route, the filter.

One netlink socket, in the groups of rules, routes and traffic control. A classic packet filter on it drops, in the
kernel, everything but the removal of such a thing: changes of others do not wake the process, however many there are.
"""

from __future__ import annotations

import errno
from typing import Any, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.arp_broadcast import CLSACT_HANDLE, EGRESS, HANDLE, HANDLE_WITH_HOOK
from autoip.kernel.model import PROTOCOL
from autoip.kernel.netlink_filter import assemble, attach, attribute, byte, native, of_type, word
from autoip.kernel.source_routing import RULE_PRIORITY, TABLE_BASE

GROUPS = rtnetlink.RTMGRP_TC | rtnetlink.RTMGRP_IPV4_ROUTE | rtnetlink.RTMGRP_IPV4_RULE

_RTA_DST, _FRA_PRIORITY = 1, 6

# Struct fib_rule_hdr and rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type (bytes), flags. Struct
# tcmsg: family (padded), ifindex, handle, parent, info (words).
_RULE_GONE = [
    of_type(rtnetlink.RTM_DELRULE),
    byte(2, 32),
    attribute(12, _FRA_PRIORITY, native("I", RULE_PRIORITY)),
]
# Routes to neighbours (prefix length 32) are not put back: see `neighbour_routes`.
_ROUTES_GONE = [
    [of_type(rtnetlink.RTM_DELROUTE), byte(5, PROTOCOL), byte(1, prefixlen)]
    for prefixlen in (0, LINK_LOCAL_NETWORK.prefixlen)
]
_CONNECTED_ROUTE_GONE = [
    of_type(rtnetlink.RTM_DELROUTE),
    byte(5, rtnetlink.RTPROT_KERNEL),
    byte(1, LINK_LOCAL_NETWORK.prefixlen),
    attribute(12, _RTA_DST, int(LINK_LOCAL_NETWORK.network_address)),
]
_CLSACT_GONE = [of_type(rtnetlink.RTM_DELQDISC), word(8, CLSACT_HANDLE)]
# Where all filters of a priority, or all of a qdisc, are removed at once, the handle is 0.
_FILTERS_GONE = [
    [of_type(rtnetlink.RTM_DELTFILTER), word(12, EGRESS), word(8, handle)]
    for handle in (0, HANDLE, HANDLE_WITH_HOOK)
]
_RULES = (_RULE_GONE, *_ROUTES_GONE, _CONNECTED_ROUTE_GONE, _CLSACT_GONE, *_FILTERS_GONE)


@final
class LossWatch:
    """The socket. Closed until `open`.

    Raises:
        KernelRefused: from `open`.
    """

    def __init__(self) -> None:
        self._socket: netlink.Socket | None = None

    def open(self) -> None:
        """Watch from now on."""
        program = assemble(_RULES)
        self._socket = netlink.Socket(
            rtnetlink.ROUTE, GROUPS, lambda opened: attach(opened, program)
        )

    def close(self) -> None:
        """Close the socket. Harmless when repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def next(self) -> set[int] | None:
        """Wait for removals; return the indexes of their interfaces; None: of any, since messages were lost.

        Raises:
            OSError: EBADF when the socket is closed.
        """
        while (opened := self._socket) is not None:
            try:
                messages = await opened.news()
            except OSError as problem:
                if problem.errno == errno.EBADF:
                    raise
                return None
            if found := {index for index in map(_index, messages) if index is not None}:
                return found
        raise OSError(errno.EBADF, "the socket is closed")


def _index(message: Any) -> int | None:
    """Return the interface of a removed thing."""
    kind = message["header"]["type"]
    if kind == rtnetlink.RTM_DELRULE:
        table: int = message.get_attr("FRA_TABLE") or 0
        return table - TABLE_BASE if table > TABLE_BASE else None
    if kind == rtnetlink.RTM_DELROUTE:
        index: int | None = message.get_attr("RTA_OIF")
        return index
    return int(message["index"])

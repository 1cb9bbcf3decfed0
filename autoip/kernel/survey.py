"""What the kernel has that can be in the way of a link-local address: all of it read, nothing changed.

Needs no privilege, but for the BPF programs of tcx.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from autoip.errors import KernelRefused
from autoip.kernel import arp_broadcast, netlink, rtnetlink, tcx
from autoip.kernel.arp_broadcast import Filter
from autoip.kernel.model import Address, Link, Neighbour, Route
from autoip.kernel.netlink import Request, Requests


@dataclass(frozen=True, slots=True)
class Egress:
    """What sees a frame that leaves an interface, before its queue does."""

    filters: tuple[Filter, ...] = ()
    """Those of tc, in the order in which they run."""
    by_tcx: bool = False
    """Our program is attached by tcx, or would be: it runs before all filters of tc."""
    programs: int | None = 0
    """How many BPF programs of tcx run before ours; None: who asks may not know, nor whether ours is one."""
    other_hook: bool = False
    """A qdisc `ingress` is in the place of the clsact that our filter needs."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The network configuration of this network namespace."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    egress: Mapping[int, Egress] = field(default_factory=dict)
    """By the index of the interface, for those that speak ARP."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What can be long: a router has a million routes."""

    routes: tuple[Route, ...] = ()
    """Of all tables."""
    neighbours: tuple[Neighbour, ...] = ()


async def tables() -> Tables:
    """Read them. Raises KernelRefused."""
    requests = Requests(rtnetlink.ROUTE)
    requests.open()
    try:
        routes = await _of_ipv4(requests, rtnetlink.RTM_GETROUTE)
        neighbours = await _of_ipv4(requests, rtnetlink.RTM_GETNEIGH)
        return Tables(
            _read(rtnetlink.read_route, routes), _read(rtnetlink.read_neighbour, neighbours)
        )
    finally:
        requests.close()


async def survey() -> Survey:
    """Read all of it. Raises KernelRefused."""
    requests = Requests(rtnetlink.ROUTE)
    requests.open()
    try:
        attributes = [("IFLA_EXT_MASK", rtnetlink.RTEXT_FILTER_SKIP_STATS)]
        links = _read(
            rtnetlink.read_link,
            await requests.dump(Request("list links", rtnetlink.RTM_GETLINK, {}, attributes)),
        )
        hooked = await _with_other_hook(requests)
        return Survey(
            links=links,
            addresses=_read(
                rtnetlink.read_address, await _of_ipv4(requests, rtnetlink.RTM_GETADDR)
            ),
            egress={
                link.index: await _egress(requests, link.index, other_hook=link.index in hooked)
                for link in links
                if link.speaks_arp
            },
        )
    finally:
        requests.close()


def _read(read: Any, messages: Sequence[Any]) -> Any:
    return tuple(found for found in map(read, messages) if found is not None)


async def _of_ipv4(requests: Requests, kind: int) -> list[Any]:
    return await requests.dump(
        Request("read the configuration", kind, {"family": int(socket.AF_INET)})
    )


async def _with_other_hook(requests: Requests) -> set[int]:
    """The interfaces that have a qdisc `ingress`."""
    try:
        found = await requests.dump(Request("list qdiscs", rtnetlink.RTM_GETQDISC, {}))
    except KernelRefused as problem:
        if problem.errno in netlink.NOT_BUILT:
            return set()
        raise
    return {
        message["index"]
        for message in found
        if rtnetlink.text(message.get_attr("TCA_KIND") or b"") == "ingress"
    }


async def _egress(requests: Requests, index: int, *, other_hook: bool) -> Egress:
    try:
        filters = await arp_broadcast.filters(requests, index, arp_broadcast.EGRESS)
    except KernelRefused as problem:
        # The interface has gone meanwhile, or the kernel has no filters.
        if problem.errno not in (*netlink.GONE, *netlink.NOT_BUILT, errno.EINVAL):
            raise
        filters = []
    served = any(found.ours for found in filters)
    by_tcx, programs = not served, None
    with suppress(OSError):
        by_tcx, programs = _programs(index, served=served)
    return Egress(tuple(filters), by_tcx, programs, other_hook)


def _programs(index: int, *, served: bool) -> tuple[bool, int]:
    """Return whether our program is one of tcx, or would be, and how many run before ours.

    Args:
        index: the interface's.
        served: whether a filter of tc has our program.

    Raises:
        OSError: EPERM.
    """
    try:
        count, ours = tcx.programs(index, egress=True)
    except OSError as problem:
        if problem.errno != errno.EOPNOTSUPP:
            raise
        return False, 0
    if ours is not None:
        return True, ours
    return not served, count if served else 0  # the daemon would put ours before them

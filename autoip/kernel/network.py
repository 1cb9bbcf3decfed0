"""The kernel's network configuration: requests, and the events that the kernel reports.

Two sockets. One receives events (link and IPv4 address changes; routes only after `follow_routes`, because
every message wakes the process); one makes requests, so that the parts of a dump never mix with events. When
events were lost, for whatever reason, the next event is a `Resync` with all links and addresses.

What `add_address` sets up for an address on an interface, and `remove_address` removes:

* the address itself (see `addresses`);
* a rule and a table for it (see `source_routing`), so that replies from it leave by its interface.

Before the first address `prepare`, or else `add_address`, makes ARP leave the interface by broadcast where it must
(see `arp_broadcast`). That stays from one address to the next, until `release`.

`neighbours` has the routes to neighbours, where several links lead to link-local destinations (see `neighbour_routes`).

`set_onlink` sets a route to link-local destinations from a routable address; `demote` puts the route of the
link-local address behind it. `set_default` sets a route from a link-local address to everything on the link (see
`onlink_routes`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, final

from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.addresses import Addresses
from autoip.kernel.arp_broadcast import Attached, Broadcast
from autoip.kernel.loss_watch import LossWatch
from autoip.kernel.model import (
    IFF_UP,
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
    Resync,
    Route,
    RouteAdded,
    RouteRemoved,
)
from autoip.kernel.neighbour_routes import NeighbourRoutes
from autoip.kernel.netlink import Request, Requests
from autoip.kernel.onlink_routes import OnlinkRoutes
from autoip.kernel.pending_events import PendingEvents
from autoip.kernel.rtnetlink import read_address, read_link, read_route
from autoip.kernel.source_routing import TABLE_BASE, SourceRules
from autoip.kernel.stranded_routes import StrandedRoutes

LABEL_SUFFIX = "autoip"
"""After the interface's name and a colon, the label."""

EVENT_GROUPS = rtnetlink.RTMGRP_LINK | rtnetlink.RTMGRP_IPV4_IFADDR
NEWS_AT_ONCE = 1000
"""Datagrams of news that are read before the first event of them is handled, at most."""
# Seconds between two resynchronisations, and the bounds of the pause between failed ones.
RESYNC_INTERVAL = 1.0
REOPEN_PAUSE_MIN = 0.1
REOPEN_PAUSE_MAX = 5.0


@final
class Network:
    """The kernel's network configuration, in the network namespace of the process.

    Closed until `open`. All methods belong to one asyncio event loop. Requests are done one after the other.

    Args:
        label_suffix: see LABEL_SUFFIX.
        program, attached: see `Broadcast`.

    Raises:
        KernelRefused: from each method that asks the kernel; EBADF if it is not open.
    """

    limits: list[str]
    """What this kernel cannot do, one line each, as far as it was noticed. Grows."""

    def __init__(
        self,
        label_suffix: str = LABEL_SUFFIX,
        program: int | str = "no program was loaded",
        attached: Attached = (),
    ) -> None:
        self.limits = []
        self._groups = EVENT_GROUPS
        self._events: netlink.Socket | None = None
        self._requests = Requests(rtnetlink.ROUTE)
        self._addresses = Addresses(self._requests, label_suffix, self.limit)
        self._rules = SourceRules(self._requests)
        self._broadcast = Broadcast(self._requests, program, attached)
        self.by_unicast, self.by_filter = self._broadcast.refusal, self._broadcast.by_filter
        self.detached = self._broadcast.detached
        self._onlink = OnlinkRoutes(self._requests, TABLE_BASE)
        self._stranded = StrandedRoutes(self._requests, self._addresses)
        self.neighbours = NeighbourRoutes(self._requests)
        self._losses = LossWatch()
        self._pending = PendingEvents()
        self._links: dict[int, Link] = {}
        self._lost = False
        self._resynced_at: float | None = None

    async def open(self) -> None:
        """Open the sockets. From now on no event is lost without a Resync."""
        try:
            self._events = netlink.Socket(rtnetlink.ROUTE, self._groups)
            self._requests.open()
            self._losses.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets, and detach programs. Harmless when repeated."""
        self._close_events()
        self._broadcast.close()
        self._requests.close()
        self._losses.close()

    async def snapshot(self) -> tuple[list[Link], list[Address]]:
        """Return all links and all IPv4 addresses.

        Events that come later can be older than this.
        """
        attributes = [("IFLA_EXT_MASK", rtnetlink.RTEXT_FILTER_SKIP_STATS)]
        request = Request("list links", rtnetlink.RTM_GETLINK, {}, attributes)
        messages = await self._requests.dump(request)
        links = [link for link in map(read_link, messages) if link is not None]
        addresses = await self.addresses()
        self._links = {link.index: link for link in links}
        return links, addresses

    async def addresses(self) -> list[Address]:
        """Return all IPv4 addresses."""
        return await self._addresses.all()

    async def next_event(self) -> Event:
        """Wait for the next event. May be cancelled; no event is lost.

        Lost messages and a broken socket become a Resync.
        """
        while True:
            self._requests.require_open()
            if self._pending:
                await asyncio.sleep(0)  # other tasks run between any two events
                return self._pending.take()
            if self._lost or self._events is None:
                return await self._resync()
            try:
                await self._read_news(self._events)
            except Exception:  # noqa: BLE001
                # A message that cannot be read must not end the daemon either; the dump has its
                # content.
                self._lost = True

    async def prepare(self, link: Link) -> None:
        """Do beforehand what takes `add_address` the longest, some 15 ms. A refusal is kept: see `by_unicast`."""
        await self._broadcast.add(link)

    async def add_address(self, link: Link, address: IPv4Address, *, replace: bool = False) -> None:
        """Add `address` to `link`, and what belongs to it (see the module's text).

        With `replace` it may be there already: then it gets the metric and the mark of ours, and
        what belongs to it is restored.

        Raises:
            KernelRefused: EEXIST if the address is there already; no address, rule or route was changed.
        """
        # Before the address: the kernel answers for it from the first moment.
        await self._broadcast.add(link)
        await self._addresses.add(link, address, replace=replace)
        try:
            if not await self._rules.add(link, address):
                self.limit("the kernel has no routing rules: of several interfaces one is reached")
        except KernelRefused:
            await self.remove_address(link.index, address)
            raise
        await self._addresses.check(link, address)

    async def restore(self, link: Link, address: IPv4Address) -> list[str]:
        """Put back what is missing of what belongs to `address`, which is on `link`; return what that was, in words."""
        missing = ["filter"] if await self._broadcast.restore(link) else []
        if await self._addresses.restore_route(link, address):
            missing.append("connected route")
        return missing + await self._rules.restore(link, address)

    async def next_losses(self) -> set[int] | None:
        """Wait until something that `restore` may have to put back is removed: see `LossWatch.next`."""
        return await self._losses.next()

    async def remove_address(self, index: int, address: IPv4Address) -> None:
        """Remove `address` from the interface `index`, and what belongs to it.

        The address may be gone already, and the interface too.
        """
        await self._rules.remove(index, address)
        await self._addresses.remove(index, address)

    async def release(self, index: int) -> None:
        """Remove what stays on the interface from one address to the next: none is wanted any more."""
        await self._broadcast.remove(index)

    @property
    def attached(self) -> Attached:
        """What a program that goes on in this process takes over: see `Broadcast`."""
        return self._broadcast.attached

    async def set_onlink(self, link: Link, source: IPv4Address) -> None:
        """Reach link-local destinations by `link` from `source`."""
        await self._onlink.set(link, source)

    async def remove_onlink(self, index: int) -> None:
        """Undo `set_onlink`, also that of a crashed instance."""
        await self._onlink.remove(index)

    async def demote(self, link: Link, address: IPv4Address) -> None:
        """Put the route that comes with `address` behind all others."""
        await self._addresses.demote(link, address)

    async def promote(self, index: int) -> None:
        """Undo `demote`."""
        await self._addresses.promote(index)

    async def set_default(self, link: Link, source: IPv4Address) -> None:
        """Reach everything by `link` from `source`, behind all other routes."""
        await self._onlink.set_default(link, source)

    async def remove_default(self, index: int) -> None:
        """Undo `set_default`, also that of a crashed instance."""
        await self._onlink.remove_default(index)

    async def remove_stranded(self, index: int, ours: IPv4Address) -> list[str]:
        """Remove routes that outlived the last other address: see `StrandedRoutes.remove`."""
        return await self._stranded.remove(index, ours)

    def follow_routes(self) -> None:
        """From now on report routes as well. Every change of any route then wakes the process."""
        self._groups |= rtnetlink.RTMGRP_IPV4_ROUTE
        if self._events is None:
            return  # the next socket joins the group
        try:
            self._events.join(rtnetlink.RTNLGRP_IPV4_ROUTE)
        except OSError as problem:
            raise KernelRefused(problem.errno or errno.EIO, "follow the routes") from problem

    async def other_default(self) -> bool:
        """Return whether somebody else has set a default route, in any table."""
        fields = {"family": int(socket.AF_INET)}
        found: list[bool] = []

        def take(message: Any) -> None:
            route = read_route(message)
            if route is not None and _is_default(route) and not route.ours:
                found[:] = [True]

        request = Request("list routes", rtnetlink.RTM_GETROUTE, fields)
        await self._requests.scan(request, take, found.clear, rtnetlink.may_be_default_or_ours)
        return bool(found)

    async def set_up(self, index: int) -> None:
        """Set the interface up, as `ip link set up` does."""
        fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
        request = Request(f"set interface {index} up", rtnetlink.RTM_NEWLINK, fields)
        await self._requests.send(request, netlink.CHANGE)

    async def sweep(self) -> None:
        """Remove rules and routes that a crashed instance left.

        Those of addresses that are on their interface stay: another instance can serve them.
        """

        async def living() -> set[tuple[int, IPv4Address]]:
            return {(found.index, found.address) for found in await self.addresses()}

        await self._rules.sweep(living)

    def is_strict(self, link: Link) -> bool:
        """Return whether packets are dropped here whose source is reached by another interface: rp_filter is 1."""
        values = [0]
        for name in ("all", link.name):
            with suppress(OSError, ValueError):
                setting = Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter")
                values.append(int(setting.read_text()))
        return max(values) == 1

    def limit(self, line: str) -> None:
        """Note, in one line, something that this kernel cannot do."""
        if line not in self.limits:
            self.limits.append(line)

    # Events

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    async def _read_news(self, events: netlink.Socket) -> None:
        """Wait for news, then take all that is there, so that a link that flapped is one event."""
        wanted = rtnetlink.may_be_default_or_ours
        news: list[Any] | None = await events.news(wanted)
        left = NEWS_AT_ONCE
        while news is not None:
            for message in news:
                self._decode(message)
            left -= 1
            await asyncio.sleep(0)
            news = events.more_news(wanted) if left else None

    def _decode(self, message: Any) -> None:
        """Make an event of a message, if it is about something watched."""
        kind = message["header"]["type"]
        if kind == rtnetlink.RTM_NEWLINK:
            link = read_link(message)
            # The kernel sends unchanged links too, for instance when something changed that Link leaves out.
            if link is not None and self._links.get(link.index) != link:
                self._links[link.index] = link
                self._pending.add(LinkChanged(link))
        elif kind == rtnetlink.RTM_DELLINK:
            # Family AF_BRIDGE: the link is not a port of a bridge any more, but it is still there.
            if message["family"] == socket.AF_UNSPEC:
                self._links.pop(message["index"], None)
                self._pending.add(LinkRemoved(message["index"]))
        elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
            address = read_address(message)
            if address is not None:
                event = AddressAdded if kind == rtnetlink.RTM_NEWADDR else AddressRemoved
                self._pending.add(event(address))
        elif kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
            route = read_route(message)
            if route is None:
                return
            if kind == rtnetlink.RTM_NEWROUTE and _is_default(route) and not route.ours:
                self._pending.add(RouteAdded())
            elif kind == rtnetlink.RTM_DELROUTE and (_is_default(route) or _is_kept(route)):
                self._pending.add(RouteRemoved(route))

    async def _resync(self) -> Resync:
        """Open a new event socket, then take a snapshot: what happens in between becomes an event."""
        self._close_events()
        now = asyncio.get_running_loop().time
        pause = REOPEN_PAUSE_MIN
        if self._resynced_at is not None:
            # There are more events than can be handled: for a while, without a socket, they cost nothing.
            await asyncio.sleep(self._resynced_at + RESYNC_INTERVAL - now())
        while True:
            self._requests.require_open()
            try:
                self._events = netlink.Socket(rtnetlink.ROUTE, self._groups)
                links, addresses = await self.snapshot()
            except KernelRefused:
                self._requests.require_open()
                self._close_events()
                await asyncio.sleep(pause)
                pause = min(2 * pause, REOPEN_PAUSE_MAX)
            else:
                self._resynced_at = now()
                # Not earlier: after a cancellation this must begin again.
                self._lost = False
                return Resync(tuple(links), tuple(addresses))


def _is_kept(route: Route) -> bool:
    """Return whether it is ours, and put back if somebody removes it; those to neighbours come and go."""
    return route.ours and route.prefixlen < 32


def _is_default(route: Route) -> bool:
    return route.prefixlen == 0 and route.table != rtnetlink.RT_TABLE_LOCAL

"""Links, addresses, routes and rules: what is asked of the kernel, and what it tells.

Two sockets. One receives events (link and IPv4 address changes; routes only if they are asked for,
since every message wakes the process up); one makes requests, so that the parts of a dump never mix with events. When
events were lost, for whatever reason, the next event is a `Resync` with the whole truth.

What `add_address` sets up for an address A on interface number N, and `remove_address` takes off:

* A/16, broadcast 169.254.255.255, with the connected route's metric 1000 + N, so that several
  interfaces with link-local addresses have one route each;
* a rule and a table for A (see `source_rule`), so that replies from A leave by N.

Before the first address `add_address` also makes ARP leave N by broadcast where it must (see
`broadcast`). That stays from one address to the next, until `release`.

Beside a routable address `set_onlink` has link-local destinations reached from that one, and with a
link-local one `set_default` has everything else reached on the link (see `onlink`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from typing import Any, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.errors import KernelRefused
from autoip.kernel import rtnetlink
from autoip.kernel.arp_broadcast import Broadcast
from autoip.kernel.model import (
    IFF_UP,
    PROTOCOL,
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
from autoip.kernel.onlink_routes import OnlinkRoutes
from autoip.kernel.rtnetlink import (
    Request,
    Requests,
    promote_secondaries,
    read_address,
    read_link,
    read_route,
    restore_address,
    set_promote_secondaries,
    text,
    why_lost,
)
from autoip.kernel.source_routing import TABLE_BASE, SourceRules

METRIC_BASE = 1000
LABEL_SUFFIX = "autoip"
"""After the interface's name and a colon, the label."""
LABEL_MAX = 15

EVENT_GROUPS = rtnetlink.RTMGRP_LINK | rtnetlink.RTMGRP_IPV4_IFADDR
# Seconds between two resynchronisations, and the bounds of the pause between failed ones.
RESYNC_INTERVAL = 1.0
REOPEN_PAUSE_MIN = 0.1
REOPEN_PAUSE_MAX = 5.0


@final
class Network:
    """The kernel's network configuration, in the network namespace of the process.

    All methods belong to one asyncio event loop. Requests are done one after the other.
    """

    limits: list[str]
    """What this kernel cannot do, one line each, as far as it was noticed. Grows."""

    def __init__(
        self, label_suffix: str = LABEL_SUFFIX, program: int | str = "no program was loaded"
    ) -> None:
        """Not open yet. `label_suffix`: see LABEL_SUFFIX; `program`: see `Broadcast`."""
        self.limits = []
        self._label_suffix = label_suffix
        self._groups = EVENT_GROUPS
        self._events: Any = None
        self._requests = Requests()
        self._rules = SourceRules(self._requests)
        self._broadcast = Broadcast(self._requests, program)
        self._onlink = OnlinkRoutes(self._requests, TABLE_BASE)
        self._remove_lock = asyncio.Lock()
        self._pending: deque[Event] = deque()
        self._links: dict[int, Link] = {}
        self._lost: str | None = None
        self._resynced_at: float | None = None
        self._checked = False

    async def open(self) -> None:
        """Open both sockets. From now on no event is lost without a Resync.

        Raises KernelRefused.
        """
        try:
            self._events = await rtnetlink.open_socket(self._groups)
            await self._requests.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both sockets. May be called more than once."""
        self._close_events()
        self._requests.close()

    async def snapshot(self) -> tuple[list[Link], list[Address]]:
        """All links and all IPv4 addresses. Raises KernelRefused.

        Events that are still to come can be older than what is returned here.
        """
        attributes = [("IFLA_EXT_MASK", rtnetlink.RTEXT_FILTER_SKIP_STATS)]
        request = Request("list links", rtnetlink.RTM_GETLINK, {}, attributes)
        messages = await self._requests.dump(request)
        links = [link for link in map(read_link, messages) if link is not None]
        addresses = await self.addresses()
        self._links = {link.index: link for link in links}
        return links, addresses

    async def addresses(self) -> list[Address]:
        """All IPv4 addresses. Raises KernelRefused."""
        messages = await self._addresses(0)
        return [found for found in map(read_address, messages) if found is not None]

    async def next_event(self) -> Event:
        """Wait for the next event. May be cancelled without losing one.

        Lost messages and a broken socket become a Resync. Raises KernelRefused(EBADF) once closed.
        """
        while True:
            self._requests.require_open()
            if self._pending:
                return self._pending.popleft()
            if self._lost is not None:
                return await self._resync(self._lost)
            try:
                async with contextlib.aclosing(self._events.get()) as messages:
                    async for message in messages:
                        self._decode(message)
            except Exception as problem:  # noqa: BLE001
                # Also a message that pyroute2 or we cannot read must not end the daemon; what it
                # was about is in the dump.
                self._lost = why_lost(problem)

    async def add_address(
        self, link: Link, address: IPv4Address, *, replace: bool = False
    ) -> Address:
        """Add `address` to `link`, and what belongs to it (see the module's text).

        With `replace` it may be there already: then it gets the metric and the mark that ours have,
        and what belongs to it is put back.

        Raises KernelRefused, with EEXIST if the address is there already. Then no address, rule or
        route was changed.
        """
        # Before the address: the kernel answers for it from the first moment.
        await self._broadcast.add(link)
        what = f"add {address} to {link.name}"
        scope = rtnetlink.RT_SCOPE_LINK
        try:
            await self._add(link, address, scope, what, replace=replace)
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:
                raise
            # The kernel demands one scope of all addresses of a prefix. Looked up only now: the
            # address should be there as soon as it may be.
            scope = await self._foreign_scope(link.index)
            if scope == rtnetlink.RT_SCOPE_LINK:
                raise
            await self._add(link, address, scope, what, replace=replace)
        try:
            if not await self._rules.add(link, address):
                self.limit("the kernel has no routing rules: of several interfaces one is reached")
        except KernelRefused:
            await self.remove_address(link.index, address)
            raise
        return await self._check(link, address, scope)

    async def remove_address(self, index: int, address: IPv4Address) -> bool:
        """Remove `address` from the interface `index`, and what belongs to it.

        Return False if the address was not there, or the interface is gone. Raises KernelRefused.
        """
        await self._rules.remove(index, address)
        # One at a time: what is true of the others' addresses must stay so until it is done.
        async with self._remove_lock:
            return await self._remove_alone(index, address)

    async def release(self, index: int) -> None:
        """No address is wanted any more: take off the interface what stays from one to the next.

        Raises KernelRefused.
        """
        await self._broadcast.remove(index)

    def by_unicast(self, index: int) -> str | None:
        """Why ARP for our address leaves the interface `index` by unicast, None if it does not."""
        return self._broadcast.refusal(index)

    async def set_onlink(self, link: Link, source: IPv4Address) -> None:
        """Reach link-local destinations by `link` from `source`. Raises KernelRefused."""
        await self._onlink.set(link, source)

    async def remove_onlink(self, index: int) -> bool:
        """Undo `set_onlink`, also that of a crashed instance. Raises KernelRefused."""
        return await self._onlink.remove(index)

    async def set_default(self, link: Link, source: IPv4Address) -> None:
        """Reach everything by `link` from `source`, behind all other routes. Raises KernelRefused."""
        await self._onlink.set_default(link, source)

    async def remove_default(self, index: int) -> bool:
        """Undo `set_default`, also that of a crashed instance. Raises KernelRefused."""
        return await self._onlink.remove_default(index)

    def follow_routes(self) -> None:
        """From now on tell also of routes. Every change of any route then wakes the process.

        Raises KernelRefused.
        """
        self._groups |= rtnetlink.RTMGRP_IPV4_ROUTE
        try:
            self._events.join(rtnetlink.RTNLGRP_IPV4_ROUTE)
        except OSError as problem:
            raise KernelRefused(problem.errno or errno.EIO, "follow the routes") from problem

    async def other_default(self) -> bool:
        """Whether somebody else has set a default route, in any table. Raises KernelRefused."""
        fields = {"family": int(socket.AF_INET)}
        found = await self._requests.dump(Request("list routes", rtnetlink.RTM_GETROUTE, fields))
        return any(
            route is not None and _is_default(route) and not route.ours
            for route in map(read_route, found)
        )

    async def set_up(self, index: int) -> None:
        """Set the interface up, as `ip link set up` does. Raises KernelRefused."""
        fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
        request = Request(f"set interface {index} up", rtnetlink.RTM_NEWLINK, fields)
        await self._requests.send(request, rtnetlink.CHANGE)

    async def sweep(self) -> int:
        """Remove rules and routes that a crashed instance left. Return how many.

        Those of addresses that are on their interface stay: another instance can serve them.
        Raises KernelRefused.
        """
        living = {(found.index, found.address) for found in await self.addresses()}
        return await self._rules.sweep(living)

    def limit(self, line: str) -> None:
        """Note what cannot be done here, in one line."""
        if line not in self.limits:
            self.limits.append(line)

    # Addresses

    async def _add(
        self, link: Link, address: IPv4Address, scope: int, what: str, *, replace: bool
    ) -> None:
        attributes: list[tuple[str, object]] = [
            ("IFA_ADDRESS", address.packed),
            ("IFA_LOCAL", address.packed),
            ("IFA_BROADCAST", LINK_LOCAL_NETWORK.broadcast_address.packed),
            ("IFA_RT_PRIORITY", METRIC_BASE + link.index),
            ("IFA_PROTO", PROTOCOL),
        ]
        label = self._label(link)
        if len(label) <= LABEL_MAX:
            # Without one the kernel makes the interface's name the label.
            attributes.append(("IFA_LABEL", label + b"\0"))
        fields = {
            "family": socket.AF_INET,
            "prefixlen": LINK_LOCAL_NETWORK.prefixlen,
            "scope": scope,
            "index": link.index,
        }
        request = Request(what, rtnetlink.RTM_NEWADDR, fields, attributes)
        await self._requests.send(request, rtnetlink.REPLACE if replace else rtnetlink.CREATE)

    def _label(self, link: Link) -> bytes:
        return os.fsencode(f"{link.name}:{self._label_suffix}")

    async def _foreign_scope(self, index: int) -> int:
        """The scope of the addresses of our prefix on this interface, RT_SCOPE_LINK if none."""
        for other in await self._addresses(index):
            if _in_prefix(other):
                return int(other["scope"])
        return rtnetlink.RT_SCOPE_LINK

    async def _check(self, link: Link, address: IPv4Address, scope: int) -> Address:
        """What was added, as an Address. The first time as the kernel has it, to learn its limits."""
        label = self._label(link)
        name = text(label) if len(label) <= LABEL_MAX else link.name
        wanted = Address(link.index, address, LINK_LOCAL_NETWORK.prefixlen, scope, name, PROTOCOL)
        if self._checked:
            return wanted
        for message in await self._addresses(link.index):
            if _is(message, address):
                self._checked = True
                if message.get_attr("IFA_PROTO") != PROTOCOL:
                    self.limit("the kernel does not keep who set an address (IFA_PROTO, 5.18)")
                if message.get_attr("IFA_RT_PRIORITY") != METRIC_BASE + link.index:
                    self.limit("the kernel gives addresses no metric (IFA_RT_PRIORITY, 4.18)")
                return read_address(message) or wanted
        return wanted

    async def _remove_alone(self, index: int, address: IPv4Address) -> bool:
        what = f"remove {address} from interface {index}"
        others = await self._addresses(index)
        ours = next((other for other in others if _is(other, address)), None)
        if ours is None:
            return False
        # Deleting the first address ("primary") of a prefix makes the kernel delete the others of
        # that prefix ("secondary") as well, unless promote_secondaries is set. They are not ours.
        secondaries = [
            other
            for other in others
            if other["flags"] & rtnetlink.IFA_F_SECONDARY
            and _in_prefix(other)
            and other is not ours
        ]
        if ours["flags"] & rtnetlink.IFA_F_SECONDARY or not secondaries:
            return await self._remove(index, address, what)
        async with self._promoting(index) as promoting:
            removed = await self._remove(index, address, what)
        if not promoting:
            await self._restore(index, secondaries)
        return removed

    async def _remove(self, index: int, address: IPv4Address, what: str) -> bool:
        fields = {
            "family": socket.AF_INET,
            "prefixlen": LINK_LOCAL_NETWORK.prefixlen,
            "index": index,
        }
        attributes = [("IFA_ADDRESS", address.packed), ("IFA_LOCAL", address.packed)]
        return await self._requests.delete(Request(what, rtnetlink.RTM_DELADDR, fields, attributes))

    @contextlib.asynccontextmanager
    async def _promoting(self, index: int) -> AsyncIterator[bool]:
        """Have promote_secondaries set on the interface; gives whether it is.

        The kernel then makes the next address primary, without deleting any: sockets and routes of
        the others live on, and nobody hears of it. By netlink, since /proc/sys is read-only in most
        containers. The promotion is done when the request to delete is answered, so that the
        setting can be put back then.
        """
        before = await self._promotes(index)
        promoting = before != 0
        if not promoting:
            with contextlib.suppress(KernelRefused):
                await self._set_promotes(index, 1)
                promoting = True
        try:
            yield promoting and before is not None
        finally:
            if before == 0 and promoting:
                with contextlib.suppress(KernelRefused):
                    await self._set_promotes(index, 0)

    async def _promotes(self, index: int) -> int | None:
        """net.ipv4.conf.INTERFACE.promote_secondaries, None if the kernel does not say."""
        request = Request(f"look at interface {index}", rtnetlink.RTM_GETLINK, {"index": index})
        try:
            found = await self._requests.send(request, rtnetlink.GET)
        except KernelRefused:
            return None
        values = map(promote_secondaries, found)
        return next((value for value in values if value is not None), None)

    async def _set_promotes(self, index: int, value: int) -> None:
        await self._requests.send(set_promote_secondaries(index, value), rtnetlink.CHANGE)

    async def _restore(self, index: int, secondaries: list[Any]) -> None:
        """Add again, just as they were, those of `secondaries` that went with the primary one.

        The last resort: until then they are missing, and their programs hear of it.
        """
        present = {_key(message) for message in await self._addresses(index)}
        for message in secondaries:
            if _key(message) in present:
                continue
            with contextlib.suppress(KernelRefused):
                await self._requests.send(restore_address(message), rtnetlink.CREATE)

    async def _addresses(self, index: int) -> list[Any]:
        """RTM_NEWADDR messages of the interface's IPv4 addresses; of all interfaces if 0."""
        fields = {"family": socket.AF_INET, "index": index}
        try:
            found = await self._requests.dump(
                Request("list addresses", rtnetlink.RTM_GETADDR, fields)
            )
        except KernelRefused as problem:
            if index and problem.errno in rtnetlink.GONE:
                return []
            raise
        return [message for message in found if index in (0, message["index"])]

    # Events

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _decode(self, message: Any) -> None:
        """Make an event of a message, if it is about something that we watch."""
        kind = message["header"]["type"]
        if kind == rtnetlink.RTM_NEWLINK:
            link = read_link(message)
            # The kernel repeats itself, for instance for changes of what is not in Link.
            if link is not None and self._links.get(link.index) != link:
                self._links[link.index] = link
                self._pending.append(LinkChanged(link))
        elif kind == rtnetlink.RTM_DELLINK:
            # Family AF_BRIDGE: the link is no port of a bridge any more, but it is still there.
            if message["family"] == socket.AF_UNSPEC:
                self._links.pop(message["index"], None)
                name = text(message.get_attr("IFLA_IFNAME") or b"")
                self._pending.append(LinkRemoved(message["index"], name))
        elif kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
            address = read_address(message)
            if address is not None:
                event = AddressAdded if kind == rtnetlink.RTM_NEWADDR else AddressRemoved
                self._pending.append(event(address))
        elif kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
            route = read_route(message)
            if route is None:
                return
            if kind == rtnetlink.RTM_NEWROUTE and _is_default(route) and not route.ours:
                self._pending.append(RouteAdded(route))
            elif kind == rtnetlink.RTM_DELROUTE and (_is_default(route) or route.ours):
                self._pending.append(RouteRemoved(route))

    async def _resync(self, reason: str) -> Resync:
        """A new event socket, then a snapshot: whatever happens in between is an event."""
        self._close_events()
        now = asyncio.get_running_loop().time
        pause = REOPEN_PAUSE_MIN
        if self._resynced_at is not None:
            # More events than can be handled: without a socket they cost nothing for a while.
            await asyncio.sleep(self._resynced_at + RESYNC_INTERVAL - now())
        while True:
            self._requests.require_open()
            try:
                self._events = await rtnetlink.open_socket(self._groups)
                links, addresses = await self.snapshot()
            except KernelRefused:
                self._requests.require_open()
                self._close_events()
                await asyncio.sleep(pause)
                pause = min(2 * pause, REOPEN_PAUSE_MAX)
            else:
                self._resynced_at = now()
                # Not before: if this was cancelled, it has to begin again.
                self._lost = None
                return Resync(tuple(links), tuple(addresses), reason)


def _is_default(route: Route) -> bool:
    return route.prefixlen == 0 and route.table != rtnetlink.RT_TABLE_LOCAL


def _key(message: Any) -> tuple[bytes, int]:
    return bytes(message.get_attr("IFA_LOCAL") or b""), int(message["prefixlen"])


def _is(message: Any, address: IPv4Address) -> bool:
    """Whether an RTM_NEWADDR message is about `address`/16."""
    return _key(message) == (address.packed, LINK_LOCAL_NETWORK.prefixlen)


def _in_prefix(message: Any) -> bool:
    """Whether an RTM_NEWADDR message is about an address of 169.254.0.0/16."""
    local, prefixlen = _key(message)
    return prefixlen == LINK_LOCAL_NETWORK.prefixlen and IPv4Address(local) in LINK_LOCAL_NETWORK

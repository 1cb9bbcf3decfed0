"""The IPv4 addresses of the interfaces: list all, add and remove ours.

An address A on interface number N is added as A/16 with broadcast 169.254.255.255; its connected route gets
the metric 1000 + N, so that several interfaces with link-local addresses have one route each. An address that
new connections must not use is demoted: its route gets the metric 3000 + N, behind those of all other
interfaces, and behind the route from a routable address (see `onlink_routes`). The addresses of other
programs stay, also where the kernel would remove them with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address
from typing import Any, final

from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import PROTOCOL, Address, Link
from autoip.kernel.netlink import Request, Requests

METRIC_BASE = 1000
DEMOTED_METRIC_BASE = 3000
LABEL_MAX = 15


@final
class Addresses:
    """The kernel's IPv4 addresses.

    Args:
        requests: to the kernel.
        label_suffix: after the interface's name and a colon, the label of ours.
        limit: takes a line for each thing that this kernel cannot do.

    Raises:
        KernelRefused: from each method.
    """

    def __init__(self, requests: Requests, label_suffix: str, limit: Callable[[str], None]) -> None:
        self._requests = requests
        self._label_suffix = label_suffix
        self._limit = limit
        self._remove_lock = asyncio.Lock()
        self._checked = False
        self._demoted: dict[int, tuple[Link, IPv4Address]] = {}  # by the interface's index

    async def all(self) -> list[Address]:
        """Return all IPv4 addresses."""
        messages = await self._messages(0)
        return [found for found in map(rtnetlink.read_address, messages) if found is not None]

    async def add(self, link: Link, address: IPv4Address, *, replace: bool) -> None:
        """Add `address` to `link`; with `replace` it may be there already.

        Raises:
            KernelRefused: EEXIST if it is there and not to be replaced.
        """
        scope = rtnetlink.RT_SCOPE_LINK
        try:
            await self._add(link, address, scope, replace=replace)
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:
                raise
            # The kernel demands one scope of all addresses of a prefix. It is looked up only now, so
            # that the address is usually there one request earlier.
            scope = await self._foreign_scope(link.index)
            if scope == rtnetlink.RT_SCOPE_LINK:
                raise
            await self._add(link, address, scope, replace=replace)

    async def check(self, link: Link, address: IPv4Address) -> None:
        """Report, once, what this kernel does not keep of an address of ours."""
        if self._checked:
            return
        for message in await self._messages(link.index):
            if _is(message, address):
                self._checked = True
                if message.get_attr("IFA_PROTO") != PROTOCOL:
                    self._limit("the kernel does not keep who set an address (IFA_PROTO, 5.18)")
                if message.get_attr("IFA_RT_PRIORITY") != self._metric(link, address):
                    self._limit("the kernel gives addresses no metric (IFA_RT_PRIORITY, 4.18)")

    async def remove(self, index: int, address: IPv4Address) -> None:
        """Remove `address` from the interface `index`. It may be gone already."""
        # One at a time: the list of the others' addresses must stay true until the removal is done.
        async with self._remove_lock:
            await self._remove_alone(index, address)

    async def demote(self, link: Link, address: IPv4Address) -> None:
        """Put the route of `address` behind all others until `promote`."""
        self._demoted[link.index] = link, address
        await self._set_metric(link, address)

    async def promote(self, index: int) -> None:
        """Undo `demote`. The address, and the interface, may be gone already."""
        if (demoted := self._demoted.pop(index, None)) is not None:
            await self._set_metric(*demoted)

    async def _set_metric(self, link: Link, address: IPv4Address) -> None:
        # Without the check the kernel would add an address that is not there.
        async with self._remove_lock:
            if any(_is(message, address) for message in await self._messages(link.index)):
                await self.add(link, address, replace=True)

    def _metric(self, link: Link, address: IPv4Address) -> int:
        _, demoted = self._demoted.get(link.index, (link, None))
        return (DEMOTED_METRIC_BASE if demoted == address else METRIC_BASE) + link.index

    async def _add(self, link: Link, address: IPv4Address, scope: int, *, replace: bool) -> None:
        attributes: list[tuple[str, object]] = [
            ("IFA_ADDRESS", address.packed),
            ("IFA_LOCAL", address.packed),
            ("IFA_BROADCAST", LINK_LOCAL_NETWORK.broadcast_address.packed),
            ("IFA_RT_PRIORITY", self._metric(link, address)),
            ("IFA_PROTO", PROTOCOL),
        ]
        label = os.fsencode(f"{link.name}:{self._label_suffix}")
        if len(label) <= LABEL_MAX:
            # Without a label the kernel takes the interface's name.
            attributes.append(("IFA_LABEL", label + b"\0"))
        fields = {
            "family": socket.AF_INET,
            "prefixlen": LINK_LOCAL_NETWORK.prefixlen,
            "scope": scope,
            "index": link.index,
        }
        what = f"add {address} to {link.name}"
        request = Request(what, rtnetlink.RTM_NEWADDR, fields, attributes)
        await self._requests.send(request, netlink.REPLACE if replace else netlink.CREATE)

    async def _foreign_scope(self, index: int) -> int:
        """Return the scope of the addresses of our prefix on this interface; RT_SCOPE_LINK: none is there."""
        for other in await self._messages(index):
            if _in_prefix(other):
                return int(other["scope"])
        return rtnetlink.RT_SCOPE_LINK

    async def _remove_alone(self, index: int, address: IPv4Address) -> None:
        others = await self._messages(index)
        ours = next((other for other in others if _is(other, address)), None)
        if ours is None:
            return
        # With the first address of a prefix ("primary") the kernel deletes the others of that prefix
        # ("secondary") as well, unless promote_secondaries is set. They are not ours.
        secondaries = [
            other
            for other in others
            if other["flags"] & rtnetlink.IFA_F_SECONDARY and _in_prefix(other)
        ]
        if ours["flags"] & rtnetlink.IFA_F_SECONDARY or not secondaries:
            await self._remove(index, address)
            return
        async with self._promoting(index) as promoting:
            await self._remove(index, address)
        if not promoting:
            await self._restore(index, secondaries)

    async def _remove(self, index: int, address: IPv4Address) -> None:
        fields = {
            "family": socket.AF_INET,
            "prefixlen": LINK_LOCAL_NETWORK.prefixlen,
            "index": index,
        }
        attributes = [("IFA_ADDRESS", address.packed), ("IFA_LOCAL", address.packed)]
        what = f"remove {address} from interface {index}"
        await self._requests.delete(Request(what, rtnetlink.RTM_DELADDR, fields, attributes))

    @contextlib.asynccontextmanager
    async def _promoting(self, index: int) -> AsyncIterator[bool]:
        """Set promote_secondaries on the interface meanwhile; yield whether it is set.

        The kernel then makes the next address primary and deletes none: sockets and routes of
        the others live on. Set by netlink, because /proc/sys is read-only in most containers. The
        promotion is done when the kernel answers the deletion, so the setting can be restored
        then.
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
        """Return net.ipv4.conf.INTERFACE.promote_secondaries; None: the kernel does not report it."""
        request = Request(f"look at interface {index}", rtnetlink.RTM_GETLINK, {"index": index})
        try:
            found = await self._requests.send(request, netlink.GET)
        except KernelRefused:
            return None
        values = map(rtnetlink.promote_secondaries, found)
        return next((value for value in values if value is not None), None)

    async def _set_promotes(self, index: int, value: int) -> None:
        await self._requests.send(rtnetlink.set_promote_secondaries(index, value), netlink.CHANGE)

    async def _restore(self, index: int, secondaries: list[Any]) -> None:
        """Add again, unchanged, those of `secondaries` that went with the primary one.

        The last resort: until then they are missing, and their programs may notice.
        """
        present = {_key(message) for message in await self._messages(index)}
        for message in secondaries:
            if _key(message) in present:
                continue
            with contextlib.suppress(KernelRefused):
                await self._requests.send(rtnetlink.restore_address(message), netlink.CREATE)

    async def _messages(self, index: int) -> list[Any]:
        """Return RTM_NEWADDR messages of the IPv4 addresses of the interface; 0: of all interfaces."""
        fields = {"family": socket.AF_INET, "index": index}
        request = Request("list addresses", rtnetlink.RTM_GETADDR, fields)
        try:
            found = await self._requests.dump(request)
        except KernelRefused as problem:
            if index and problem.errno in netlink.GONE:
                return []
            raise
        return [message for message in found if index in (0, message["index"])]


def _key(message: Any) -> tuple[bytes, int]:
    return bytes(message.get_attr("IFA_LOCAL") or b""), int(message["prefixlen"])


def _is(message: Any, address: IPv4Address) -> bool:
    """Whether an RTM_NEWADDR message is about `address`/16."""
    return _key(message) == (address.packed, LINK_LOCAL_NETWORK.prefixlen)


def _in_prefix(message: Any) -> bool:
    """Whether an RTM_NEWADDR message is about an address of 169.254.0.0/16."""
    local, prefixlen = _key(message)
    return prefixlen == LINK_LOCAL_NETWORK.prefixlen and IPv4Address(local) in LINK_LOCAL_NETWORK

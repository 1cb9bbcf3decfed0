"""ARP with a link-local sender leaves by broadcast, the kernel's own included (RFC 3927, 2.5).

The kernel answers by unicast, and asks again after a stale neighbour by unicast. So a filter at the
egress of the interface, an eBPF program of the C helper, gives such packets another destination. It
needs a place to be: the queueing discipline "clsact", which holds filters and queues nothing.

* One of somebody else stays, with its filters. Ours runs before theirs, if none of them has
  priority 1, and lets all of them run (TC_ACT_UNSPEC). Its priority is one that nobody has.
* One that we have made goes at the end, unless somebody else has a filter in it by then. That it
  is ours is in our filter's handle, so that it is known after a crash as well.
* To make or remove it, the kernel stops the interface's queues for a moment, and loses what is
  sent just then. So it stays from one address to the next, until none is wanted.

A filter that a crash left is replaced in one step by the next instance on that interface: it has
our name.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink
from autoip.kernel.model import Link
from autoip.kernel.netlink import Request, Requests
from autoip.kernel.rtnetlink import attribute, nest, text

FILTER_NAME = "autoip"
PRIORITY = 39
"""Filters of low priorities run first; who gives none gets one of 32768 to 49152."""
HANDLE = 0xA9FE0001
HANDLE_WITH_HOOK = 0xA9FE0002
"""Of our filter; the second if we have made the clsact."""

# include/uapi/linux/pkt_sched.h
_HANDLE_CLSACT, _PARENT_CLSACT = 0xFFFF0000, 0xFFFFFFF1
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
# include/uapi/linux/pkt_cls.h
_BPF = "bpf"
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_FLAGS_GEN = 6, 7, 8, 9
_ACT_DIRECT = 1
_SKIP_HW = 1
# include/uapi/linux/if_ether.h
ETH_P_ALL, ETH_P_ARP = 0x0003, 0x0806


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of a clsact."""

    priority: int
    handle: int
    kind: str = _BPF
    name: str | None = FILTER_NAME
    protocol: int = ETH_P_ARP
    """ETH_P_*: which frames it sees."""

    @property
    def ours(self) -> bool:
        """Also one that another instance has left."""
        return (self.kind, self.name) == (_BPF, FILTER_NAME) and self.handle in (
            HANDLE,
            HANDLE_WITH_HOOK,
        )


@final
class Broadcast:
    """Our filters, at most one on each interface."""

    def __init__(self, requests: Requests, program: int | str) -> None:
        """Asks by `requests`. `program`: its descriptor, or in words why there is none."""
        self._requests = requests
        self._program = program
        self._filters: dict[int, Filter] = {}
        self._refusals: dict[int, str] = {}

    def refusal(self, index: int) -> str | None:
        """In words, why ARP leaves the interface by unicast; None: it does not, as far as we know."""
        if index not in self._filters and isinstance(self._program, str):
            return self._program
        return self._refusals.get(index)

    async def add(self, link: Link) -> None:
        """Send by broadcast from now on what is to leave `link` so; it may be so already.

        A refusal of the kernel is kept, and no error: see `refusal`.
        """
        self._refusals.pop(link.index, None)
        try:
            try:
                await self._add(link.index)
            except KernelRefused as problem:
                if problem.errno != netlink.ANSWER_LOST:
                    raise
                await self._add(link.index)
        except KernelRefused as problem:
            if problem.errno != errno.ENODEV:
                self._refusals[link.index] = str(problem)

    async def remove(self, index: int) -> None:
        """Undo `add`, also that of an instance that crashed. Raises KernelRefused."""
        self._filters.pop(index, None)
        self._refusals.pop(index, None)
        ours = [found for found in await filters(self._requests, index, EGRESS) if found.ours]
        for found in ours:
            await self._delete(index, found)
        if any(found.handle == HANDLE_WITH_HOOK for found in ours):
            for parent in (EGRESS, INGRESS):
                if await filters(self._requests, index, parent):
                    return
            await self._requests.delete(_hook(rtnetlink.RTM_DELQDISC, index))

    async def _add(self, index: int) -> None:
        ours = self._filters.pop(index, None)
        if isinstance(self._program, str):
            # What an instance left that could load it does as well.
            left = [found for found in await filters(self._requests, index, EGRESS) if found.ours]
            if left:
                self._filters[index] = left[0]
            return
        if ours is not None:
            # Fails if somebody has removed the clsact, or the index is of another interface now.
            with contextlib.suppress(KernelRefused):
                await self._put(index, ours, self._program)
                return
        if await self._make_hook(index):
            try:
                await self._put(index, Filter(PRIORITY, HANDLE_WITH_HOOK), self._program)
            except BaseException:  # also if it took too long: nobody else would remove it
                await self._requests.delete(_hook(rtnetlink.RTM_DELQDISC, index))
                raise
        else:
            there = await filters(self._requests, index, EGRESS)
            await self._put(index, place(there), self._program)

    async def _make_hook(self, index: int) -> bool:
        """Whether a clsact was made; False: one is there. Raises KernelRefused."""
        request = _hook(rtnetlink.RTM_NEWQDISC, index)
        try:
            await self._requests.send(request, netlink.CREATE)
            return True
        except KernelRefused as problem:
            if problem.errno != errno.EEXIST:
                raise
        # "ingress" is at the same place; a filter for egress would land in its ingress. A change
        # that changes nothing tells: the kernel refuses it for another kind. (It answers
        # RTM_GETQDISC for this place with nothing at all.)
        try:
            await self._requests.send(request, netlink.CHANGE)
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:
                raise
            what = f"add a clsact to interface {index}, which has another qdisc for ingress"
            raise KernelRefused(errno.EEXIST, what) from None
        return False

    async def _put(self, index: int, wanted: Filter, program: int) -> None:
        """Make the filter, or give it our program in one step. Raises KernelRefused."""
        what = f"add a filter to interface {index}"
        request = _filter(rtnetlink.RTM_NEWTFILTER, index, wanted, what, _options(program))
        await self._requests.send(request, netlink.CHANGE | netlink.NLM_F_CREATE)
        self._filters[index] = wanted

    async def _delete(self, index: int, found: Filter) -> None:
        what = f"remove the filter of interface {index}"
        try:
            await self._requests.delete(_filter(rtnetlink.RTM_DELTFILTER, index, found, what))
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:  # the clsact has gone meanwhile
                raise


async def filters(requests: Requests, index: int, parent: int) -> list[Filter]:
    """The filters at INGRESS or EGRESS of a clsact, in the order in which they run. Raises KernelRefused."""
    what = f"list the filters of interface {index}"
    fields = {"index": index, "parent": parent}
    found = []
    for message in await requests.dump(Request(what, rtnetlink.RTM_GETTFILTER, fields)):
        name = nest(message.get_attr("TCA_OPTIONS") or b"").get(_TCA_BPF_NAME)
        found.append(
            Filter(
                priority=message["info"] >> 16,
                handle=message["handle"],
                kind=text(message.get_attr("TCA_KIND") or b""),
                name=None if name is None else text(name),
                protocol=socket.ntohs(message["info"] & 0xFFFF),
            )
        )
    return found


def place(there: Sequence[Filter]) -> Filter:
    """Where ours goes: where it is, else before all others, else where nothing is."""
    for found in there:
        if found.ours:
            return found
    taken = {found.priority for found in there}
    before = min(PRIORITY, min(taken, default=PRIORITY + 1) - 1)
    free = before or next(free for free in range(1, 1 << 16) if free not in taken)
    return Filter(free, HANDLE)


def _hook(kind: int, index: int) -> Request:
    fields = {"index": index, "handle": _HANDLE_CLSACT, "parent": _PARENT_CLSACT}
    what = f"add a clsact to interface {index}"
    if kind == rtnetlink.RTM_DELQDISC:
        what = f"remove the clsact of interface {index}"
    return Request(what, kind, fields, [("TCA_KIND", b"clsact\0")])


def _filter(
    kind: int, index: int, which: Filter, what: str, options: bytes | None = None
) -> Request:
    fields = {
        "index": index,
        "parent": EGRESS,
        "handle": which.handle,
        "info": which.priority << 16 | socket.htons(which.protocol),
    }
    attributes = [("TCA_KIND", _BPF.encode() + b"\0")]
    if options is not None:
        attributes.append(("TCA_OPTIONS", options))
    return Request(what, kind, fields, attributes)


def _options(program: int) -> bytes:
    """The program of this descriptor, which itself says what becomes of a frame."""
    return (
        attribute(_TCA_BPF_FD, struct.pack("=I", program))
        + attribute(_TCA_BPF_NAME, FILTER_NAME.encode() + b"\0")
        + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _ACT_DIRECT))
        + attribute(_TCA_BPF_FLAGS_GEN, struct.pack("=I", _SKIP_HW))
    )

"""ARP with a link-local sender leaves by broadcast, the kernel's own included (RFC 3927 section 2.5).

The kernel answers by unicast, and probes a stale neighbour by unicast. So a BPF program of the C
helper at the egress of the interface gives such packets another destination. It is attached by a
link of tcx (see `tcx`), which goes with this process.

Where the kernel refuses that, the program is in a filter of tc. Such a filter needs the queueing discipline
"clsact", which has filters and queues nothing.

* The clsact of another program stays, with its filters. Ours runs before them, if none of them has
  priority 1, and lets all of them run (TC_ACT_UNSPEC). Its priority is one that nobody has.
* The clsact that we made is removed at the end, unless another program has a filter in it by then.
  The handle of our filter records that we made it, also for the time after a crash. One system call makes both,
  so that a crash leaves both or none.
* To make or remove a clsact, the kernel stops the interface's queues for a moment, and loses what is
  sent just then. So it stays from one address to the next, until none is wanted.

A filter that a crash left has our name: the next instance on that interface replaces it in one step, or
removes it once the program is attached by tcx.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from autoip.errors import KernelRefused
from autoip.kernel import netlink, rtnetlink, tcx
from autoip.kernel.daemon_threads import in_thread
from autoip.kernel.model import Link
from autoip.kernel.netlink import Request, Requests
from autoip.kernel.rtnetlink import attribute, nest, text

FILTER_NAME = "autoip"
PRIORITY = 39
"""Filters of low priorities run first; a filter without one gets 32768 to 49152."""
HANDLE = 0xA9FE0001
HANDLE_WITH_HOOK = 0xA9FE0002
"""Handle of our filter where we have made the clsact; HANDLE: where it was there."""

# include/uapi/linux/pkt_sched.h
CLSACT_HANDLE, _PARENT_CLSACT = 0xFFFF0000, 0xFFFFFFF1
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
        """Whether this daemon, or an instance before it, made the filter."""
        marked = self.handle in (HANDLE, HANDLE_WITH_HOOK)
        return marked and (self.kind, self.name) == (_BPF, FILTER_NAME)


BY_FILTER = "the filter for ARP by broadcast is in a qdisc clsact, not a link of tcx"
Attached: TypeAlias = tuple[tuple[int, int], ...]
"""Of each link the index of its interface and its descriptor."""


@final
class Broadcast:
    """Our links or filters, at most one on each interface.

    Args:
        requests: to the kernel.
        program: descriptor of the BPF program, or in words why there is none.
        attached: the links that there are already.

    Raises:
        KernelRefused: from each coroutine but `add`.
    """

    def __init__(
        self,
        requests: Requests,
        program: int | str,
        attached: Attached = (),
    ) -> None:
        self._requests = requests
        self._program = program
        self._links: dict[int, tcx.Link] = {}
        if isinstance(program, int):
            for index, link in attached:
                self._links[index] = tcx.Link(program, index, egress=True, descriptor=link)
        self._filters: dict[int, Filter] = {}
        self._refusals: dict[int, str] = {}
        self._by_filter: dict[int, str] = {}

    @property
    def attached(self) -> Attached:
        """The links that there are."""
        return tuple(
            (i, at.descriptor) for i, at in self._links.items() if at.descriptor is not None
        )

    def detached(self, index: int) -> bool:
        """Return whether somebody else detached our link from the interface. The kernel does not report that."""
        return index in self._links and self._links[index].detached

    def refusal(self, index: int) -> str | None:
        """Return, in words, why ARP leaves the interface by unicast; None: not as far as is known."""
        if index not in self._filters and isinstance(self._program, str):
            return self._program
        return self._refusals.get(index)

    def by_filter(self, index: int) -> str | None:
        """Return, in words, that and why the program is in a filter and not in a link; None: not as far as is known."""
        return self._by_filter.get(index) if self.refusal(index) is None else None

    def close(self) -> None:
        """Detach the program from all interfaces, as the end of the process does."""
        for link in self._links.values():
            link.close()

    async def add(self, link: Link) -> None:
        """Send ARP with a link-local sender by broadcast on `link`. May be called again.

        A refusal of the kernel is kept and not raised: see `refusal`.
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

    async def restore(self, link: Link) -> bool:
        """Do `add` again if somebody removed the filter. Return whether it was missing."""
        if isinstance(self._program, str) or link.index in self._refusals:
            return False
        if link.index in self._links:
            if self._links[link.index].attached:
                return False
        else:
            try:
                if any(found.ours for found in await filters(self._requests, link.index, EGRESS)):
                    return False
            except KernelRefused as problem:
                if problem.errno != errno.EINVAL:  # EINVAL: the clsact is gone
                    raise
        await self._add(link.index)
        return True

    async def remove(self, index: int) -> None:
        """Undo `add`, also that of an instance that crashed."""
        self._filters.pop(index, None)
        self._refusals.pop(index, None)
        self._by_filter.pop(index, None)
        if (link := self._links.pop(index, None)) is not None:
            await in_thread(link.close)
        await self._remove_filter(index)

    async def _remove_filter(self, index: int) -> None:
        """Remove our filter from the interface, and the clsact if it is ours and nobody else's filter is in it."""
        there = await filters(self._requests, index, EGRESS)
        ours = [found for found in there if found.ours]
        # The kernel lists our filter's priority as well, with no handle.
        lists = {(found.priority, 0) for found in ours}
        others = [f for f in there if f not in ours and (f.priority, f.handle) not in lists]
        with_hook = any(found.handle == HANDLE_WITH_HOOK for found in ours)
        if with_hook and not others and not await filters(self._requests, index, INGRESS):
            # With the filter in it: a clsact alone, which a crash between the two would leave, could be anybody's.
            await self._requests.delete(_hook(rtnetlink.RTM_DELQDISC, index))
            return
        for found in ours:
            await self._delete(index, found)

    async def _add(self, index: int) -> None:
        ours = self._filters.pop(index, None)
        if isinstance(self._program, str):
            # A filter that an instance with a program left still works.
            left = [found for found in await filters(self._requests, index, EGRESS) if found.ours]
            if left:
                self._filters[index] = left[0]
            return
        if index in self._links and self._links[index].attached:
            return
        if await self._by_tcx(index, self._program):
            with contextlib.suppress(KernelRefused):  # what stays now is for `remove`
                await self._remove_filter(index)
            return
        if ours is not None:
            # Fails if the clsact was removed, or the index is that of another interface now.
            with contextlib.suppress(KernelRefused):
                await self._put(index, ours, self._program)
                return
        if await self._has_hook(index) or not await self._make_hook(index, self._program):
            there = await filters(self._requests, index, EGRESS)
            await self._put(index, place(there), self._program)

    async def _by_tcx(self, index: int, program: int) -> bool:
        """Attach the program by tcx. Return whether the kernel allows that. Raise KernelRefused: no such interface."""
        link = self._links.setdefault(index, tcx.Link(program, index, egress=True))
        try:
            await in_thread(link.attach)
        except OSError as problem:
            self._links.pop(index, None)
            number = problem.errno or errno.EIO
            if number == errno.ENODEV:
                raise KernelRefused(number, f"attach a program to interface {index}") from problem
            self._by_filter[index] = f"{BY_FILTER}: {tcx.why(number)}"
            return False
        self._by_filter.pop(index, None)
        return True

    async def _has_hook(self, index: int) -> bool:
        """Return whether there is a clsact."""
        # "ingress" has the same parent; there a filter for egress would become one for ingress. The
        # kernel refuses a change that changes nothing if the kind is another one. (It does not
        # answer RTM_GETQDISC for this parent.)
        try:
            await self._requests.send(_hook(rtnetlink.RTM_NEWQDISC, index), netlink.CHANGE)
            return True
        except KernelRefused as problem:
            if problem.errno == errno.ENOENT:
                return False
            if problem.errno != errno.EINVAL:
                raise
        what = f"add a clsact to interface {index}, which has another qdisc for ingress"
        raise KernelRefused(errno.EEXIST, what)

    async def _make_hook(self, index: int, program: int) -> bool:
        """Make a clsact with our filter and return True; False: another program was faster.

        Both at once: a clsact without our filter, which a crash between the two would leave, could be anybody's.
        """
        hook, wanted = _hook(rtnetlink.RTM_NEWQDISC, index), Filter(PRIORITY, HANDLE_WITH_HOOK)
        put = _put(index, wanted, program)
        refused, no_filter = await self._requests.send_together((hook, netlink.CREATE), put)
        if not refused and not no_filter:
            self._filters[index] = wanted
            return True
        if not no_filter:
            await self._delete(index, wanted)  # it is in the clsact of another program
        elif not refused:
            await self._requests.delete(_hook(rtnetlink.RTM_DELQDISC, index))
        if refused == errno.EEXIST:
            return False
        raise KernelRefused(refused or no_filter, hook.what if refused else put[0].what)

    async def _put(self, index: int, wanted: Filter, program: int) -> None:
        """Make the filter, or replace its program in one step."""
        await self._requests.send(*_put(index, wanted, program))
        self._filters[index] = wanted

    async def _delete(self, index: int, found: Filter) -> None:
        what = f"remove the filter of interface {index}"
        try:
            await self._requests.delete(_filter(rtnetlink.RTM_DELTFILTER, index, found, what))
        except KernelRefused as problem:
            if problem.errno != errno.EINVAL:  # EINVAL: the clsact is gone
                raise


async def filters(requests: Requests, index: int, parent: int) -> list[Filter]:
    """Return the filters at INGRESS or EGRESS of a clsact, in the order in which they run."""
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
    """Return our filter: as it is there, else before all others, else at a free priority."""
    for found in there:
        if found.ours:
            return found
    taken = {found.priority for found in there}
    before = min(PRIORITY, min(taken, default=PRIORITY + 1) - 1)
    free = before or next(free for free in range(1, 1 << 16) if free not in taken)
    return Filter(free, HANDLE)


def _put(index: int, wanted: Filter, program: int) -> tuple[Request, int]:
    """Return the request that makes the filter, or replaces its program, and the request's flags."""
    what = f"add a filter to interface {index}"
    request = _filter(rtnetlink.RTM_NEWTFILTER, index, wanted, what, _options(program))
    return request, netlink.CHANGE | netlink.NLM_F_CREATE


def _hook(kind: int, index: int) -> Request:
    fields = {"index": index, "handle": CLSACT_HANDLE, "parent": _PARENT_CLSACT}
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
    """Return the options for a program that itself decides about a frame (direct action)."""
    return (
        attribute(_TCA_BPF_FD, struct.pack("=I", program))
        + attribute(_TCA_BPF_NAME, FILTER_NAME.encode() + b"\0")
        + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _ACT_DIRECT))
        + attribute(_TCA_BPF_FLAGS_GEN, struct.pack("=I", _SKIP_HW))
    )

"""Several links to 169.254/16 at once: each neighbour gets a route by its own link (docs/decisions/several-cables.md).

While fewer than two links lead there, nothing of this exists: no socket, no route, no task. Otherwise `core.neighbours`
decides, from the ARP of all these links. Links that other processes of autoip serve are listened to as well; each
process makes the routes, and asks, for its own links alone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from typing import Any, Protocol, final

from autoip.core import arp
from autoip.core.arp import format_mac
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.core.neighbours import (
    AddRoute,
    Ambiguous,
    Ask,
    Effect,
    Neighbour,
    Neighbours,
    RemoveRoute,
)
from autoip.daemon.host import Host
from autoip.daemon.protocols import GivenUp, Kernel, NeighbourSocket
from autoip.daemon.serial_tasks import SerialTasks
from autoip.errors import KernelRefused
from autoip.kernel.model import Link
from autoip.kernel.neighbour_socket import READ_MAX

READ_PAUSE = 0.25
"""Seconds without reading after READ_MAX frames at once: more of them, from whomever, cost no more."""
FILTER_PAUSE = 1.0
"""Seconds between two packet filters of one socket, unless the link is to be asked for somebody."""
_REQUEST_TIMEOUT = 5.0


class Interface(Protocol):
    """What this needs of an interface that the process serves."""

    @property
    def link(self) -> Link | None:
        """The present link."""

    @property
    def leads(self) -> IPv4Address | None:
        """The source address of what goes to link-local destinations by it; None: it does not lead there."""


@dataclass(slots=True)
class _Cable:
    """A link that is listened to.

    Attributes:
        ignored: what the socket's filter drops, since...
        ignored_at: ...this time.
        pause: until the socket is read again; None: it is read.
    """

    name: str
    mac: bytes
    socket: NeighbourSocket
    ignored: set[tuple[IPv4Address, bytes]] = field(default_factory=set)
    ignored_at: float = 0.0
    pause: asyncio.TimerHandle | None = None


@final
class Cables:
    """The neighbours of this host, and the routes to those on the links of this process.

    Args:
        kernel: opens the sockets, makes the routes.
        host: which links and addresses there are.
        log: the program's logger.
    """

    def __init__(self, kernel: Kernel, host: Host, log: logging.Logger) -> None:
        self._kernel = kernel
        self._routes = kernel.network.neighbours
        self._host = host
        self._log = log
        self._core = Neighbours()
        self._cables: dict[int, _Cable] = {}
        self._sources: dict[int, IPv4Address] = {}  # of the links of this process
        self._requests = SerialTasks(_REQUEST_TIMEOUT, self._failed, lambda: None)
        self._given_up: GivenUp | None = None
        self._watching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._followed: object = None
        self._begun = False
        self._troubles: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether requests to the kernel are under way."""
        return self._requests.busy

    def update(self, interfaces: Sequence[Interface]) -> None:
        """Follow what the interfaces of this process, and this host, have now. Costs little if nothing has changed."""
        now = [(one.link, one.leads) for one in interfaces], self._host.autoip_links
        if self._followed == now:
            return
        self._followed = now
        linked = {one.link.index: one for one in interfaces if one.link is not None}
        sources = {index: one.leads for index, one in linked.items() if one.leads is not None}
        wanted = set(sources)
        if sources:
            wanted |= self._host.autoip_links - linked.keys()
        if len(wanted) < 2:
            wanted, sources = set(), {}
        if not self._begun:
            self._begun = True
            if not wanted:  # otherwise the routes of a program before are taken over
                self._requests.request(partial(self._routes.clear, *linked))
        for index in self._cables.keys() - wanted:
            self._leave(index)
        moved = [index for index in self._cables if self._sources.get(index) != sources.get(index)]
        self._sources = sources
        for index in moved:
            self._do([AddRoute(one.address, index) for one in self._core.on(index)])
        new = wanted - self._cables.keys()
        for index in new:
            self._join(index)
        if new & self._cables.keys():
            self._requests.request(self._learn_from_kernel, once="learn")
        self._watch(bool(self._cables))

    async def stop(self) -> None:
        """Remove all routes, close all sockets."""
        self.update(())
        if self._timer is not None:
            self._timer.cancel()
        await self._requests.idle()

    # --- questions ---------------------------------------------------------------------------

    def report(self, link: Link | None) -> list[dict[str, Any]]:
        """Return the neighbours that are reached by a link: see `protocol.STATUS`."""
        found = [] if link is None else self._core.on(link.index)
        return [
            {
                "address": str(one.address),
                "mac": None if one.mac is None else format_mac(one.mac),
                "ambiguous": self._other(one) if one.ambiguous else None,
            }
            for one in sorted(found, key=lambda one: one.address)
        ]

    def _other(self, one: Neighbour) -> dict[str, Any] | None:
        other = one.rival
        if other is None or other.mac is None or (cable := self._cables.get(other.link)) is None:
            return None
        return {"interface": cable.name, "mac": format_mac(other.mac)}

    # --- links -------------------------------------------------------------------------------

    def _join(self, index: int) -> None:
        link = self._host.link_of(index)
        if link is None:
            return
        try:
            opened = self._kernel.open_arp(index, link.mac)
        except OSError as problem:
            self._trouble(f"{link.name}: its neighbours get no routes: {problem.strerror}")
            return
        self._cables[index] = _Cable(link.name, link.mac, opened)
        self._core.join(index)
        self._resume(index)

    def _leave(self, index: int) -> None:
        cable = self._cables.pop(index)
        if cable.pause is not None:
            cable.pause.cancel()
        asyncio.get_running_loop().remove_reader(cable.socket.fileno())
        cable.socket.close()
        self._do(self._core.leave(index, self._kernel.clock()))

    def _watch(self, wanted: bool) -> None:
        """Follow for whom the kernel asks in vain, or stop that, and with it all."""
        if wanted and self._given_up is None:
            try:
                self._given_up = self._kernel.given_up()
            except KernelRefused as problem:
                self._trouble(f"neighbours that are gone keep their routes: {problem}")
                return
            watch = self._follow(self._given_up)
            self._watching = asyncio.get_running_loop().create_task(watch)
        elif not wanted and self._given_up is not None and self._watching is not None:
            self._watching.cancel()
            self._given_up.close()
            self._given_up = self._watching = None
            self._requests.request(self._routes.clear)

    async def _follow(self, given_up: GivenUp) -> None:
        while True:
            try:
                found = await given_up.next()
            except OSError as problem:
                if problem.errno == errno.EBADF:
                    return
                continue  # some were lost: the kernel asks again for who is still wanted
            for index, address in found:
                if index in self._cables:
                    self._do(self._core.failed(index, address, self._kernel.clock()))

    async def _learn_from_kernel(self) -> None:
        """Take over the routes that are there, of this program before a reload and of other processes."""
        for index, address in await self._routes.found():
            self._do(self._core.learn(index, address, None, self._kernel.clock()))
        for one in await self._routes.known():
            self._do(self._learn(one.index, one.address, one.mac))

    # --- frames ------------------------------------------------------------------------------

    def _resume(self, index: int) -> None:
        cable = self._cables[index]
        cable.pause = None
        loop = asyncio.get_running_loop()
        loop.add_reader(cable.socket.fileno(), self._read, index)

    def _read(self, index: int) -> None:
        cable, now = self._cables[index], self._kernel.clock()
        try:
            packets, dropped = cable.socket.read(), cable.socket.dropped()
        except OSError:
            return  # the link is down or gone, which the kernel reports as well
        for packet in packets:
            if packet.sha != cable.mac:
                self._do(self._learn(index, packet.spa, packet.sha))
            elif packet.tpa in LINK_LOCAL_NETWORK and not self._host.has(packet.tpa):
                self._do(self._core.unknown(index, packet.tpa, now))
        if dropped or len(packets) == READ_MAX:
            self._core.lost(index, now)
        if now - cable.ignored_at >= FILTER_PAUSE:
            self._ignore(index)
        if len(packets) == READ_MAX:
            loop = asyncio.get_running_loop()
            loop.remove_reader(cable.socket.fileno())
            cable.pause = loop.call_later(READ_PAUSE, self._resume, index)

    def _learn(self, index: int, address: IPv4Address, mac: bytes) -> list[Effect]:
        """Learn from a packet that may have any content."""
        strange = len(mac) != 6 or mac[0] & 1 or address not in LINK_LOCAL_NETWORK
        if strange or self._host.is_sibling(mac) or self._host.has(address):
            return []
        return self._core.learn(index, address, mac, self._kernel.clock())

    def _ignore(self, index: int) -> None:
        """Have the socket's filter drop what teaches nothing now."""
        cable, known = self._cables[index], self._core.nothing_new(index)
        if known == cable.ignored:
            return
        cable.ignored, cable.ignored_at = known, self._kernel.clock()
        try:
            cable.socket.ignore(known)
        except OSError as problem:
            self._log.debug("%s: known neighbours are not ignored: %s", cable.name, problem)

    # --- what follows ------------------------------------------------------------------------

    def _on_timer(self) -> None:
        """Do what is due. Frames that wait come before the silence that a timer stands for."""
        self._timer = None
        for index, cable in self._cables.items():
            if cable.pause is None:
                self._read(index)
        self._do(self._core.handle_timer(self._kernel.clock()))

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            source = None if isinstance(effect, Ambiguous) else self._sources.get(effect.link)
            match effect:
                case AddRoute(address, link) if source is not None:
                    self._requests.request(partial(self._routes.add, link, address, source))
                case RemoveRoute(address, link) if source is not None:
                    self._requests.request(partial(self._routes.remove, link, address))
                case Ask(address, link) if source is not None:
                    self._ask(link, address, source)
                case Ambiguous():
                    self._log.warning("%s", self._words(effect))
        at = self._core.next_timer()
        if at is not None and self._timer is None:
            pause = max(at - self._kernel.clock(), 0)
            self._timer = asyncio.get_running_loop().call_later(pause, self._on_timer)

    def _ask(self, index: int, address: IPv4Address, source: IPv4Address) -> None:
        """Ask the link for an address: by broadcast, as RFC 3927 section 2.5 demands of a link-local sender."""
        cable = self._cables[index]
        if cable.ignored:
            self._ignore(index)  # the answer must be let through
        try:
            cable.socket.send(arp.question(cable.mac, source, address).emit())
        except OSError as problem:
            # Without the question, silence shows nothing.
            self._core.lost(index, self._kernel.clock())
            self._log.debug("%s: cannot ask for %s: %s", cable.name, address, problem.strerror)

    def _words(self, one: Ambiguous) -> str:
        name, other = (self._cables[link].name for link in (one.link, one.other_link))
        mac, other_mac = (format_mac(mac or b"") for mac in (one.mac, one.other_mac))
        return f"{one.address} is on two links: {mac} on {name}, which is reached, and {other_mac} on {other}"

    def _trouble(self, text: str) -> None:
        if text not in self._troubles:
            self._troubles.add(text)
            self._log.warning("%s", text)

    def _failed(self, error: Exception) -> None:
        """A request failed: a source or a link that has just gone takes its routes with it."""
        self._log.debug("neighbour routes: %r", error)

"""The protocols of autoip/daemon/protocols.py in memory: without root and network, in the test's time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from autoip.core.arp import ArpPacket, parse
from autoip.daemon.protocols import Kernel
from autoip.errors import KernelRefused
from autoip.kernel.arp_socket import Counts, KeptSocket, Phase, Received
from autoip.kernel.model import (
    IFF_LOWER_UP,
    IFF_RUNNING,
    IFF_UP,
    PROTOCOL,
    RT_SCOPE_HOST,
    Address,
    AddressAdded,
    AddressRemoved,
    Event,
    Link,
    LinkChanged,
    LinkRemoved,
    Neighbour,
    Resync,
)
from autoip.kernel.neighbour_socket import READ_MAX

_NUMBERS = 1_000_000
READY = IFF_UP | IFF_RUNNING | IFF_LOWER_UP
Step = Callable[[], Awaitable[object]]


def mac_of(number: int) -> bytes:
    """A locally administered unicast address."""
    return b"\x02" + number.to_bytes(5, "big")


def link_of(index: int = 2, name: str = "eth0", mac: bytes | None = None, **changes: Any) -> Link:
    """A link that is ready, but for the changes."""
    mac = mac_of(index) if mac is None else mac
    return replace(Link(index, name, mac, 1, READY, None, None, None), **changes)


class FakeSocket:
    """A packet socket with its filter and its armed frame.

    Args:
        token, mac: of the socket.
        clock: seconds.
        transmit: takes what is sent; may raise OSError.
        reflex: whether an armed frame is sent at once.
    """

    def __init__(
        self,
        token: int,
        mac: bytes,
        clock: Callable[[], float],
        transmit: Callable[[ArpPacket], None],
        *,
        reflex: bool = True,
    ) -> None:
        self.token = token
        self.generation = 0
        self.watches = 0
        """So many calls of `watch`."""
        self.mac = mac
        self.phase = Phase.SILENT
        self.address: IPv4Address | None = None
        self.armed: ArpPacket | None = None
        self.closed = False
        self.waiting: list[tuple[float, ArpPacket]] | None = None
        """Frames that nobody reads, and when they came; None: they are read at once."""
        self.reflex = reflex
        self.unread: list[Received] = []
        """What waits in the kernel's socket."""
        self.queue: list[Received] = []
        """What waits for `FakeListener.drain`."""
        self.wake: Callable[[], None] = lambda: None
        self._clock = clock
        self._transmit = transmit

    attached: tuple[int, int] | None = None
    detached = False
    undefended: str | None = None
    counts: Counts | None = None

    async def restore(self) -> bool:
        await asyncio.sleep(0)
        was, self.detached = self.detached, False
        return was

    def fileno(self) -> int:
        return _NUMBERS + self.token  # not a descriptor of the process

    def watch(self, phase: Phase, address: IPv4Address | None) -> None:
        self._check()
        assert address is not None or phase is Phase.SILENT
        self.watches += 1
        if Phase.SILENT in (phase, self.phase) or address != self.address:
            self.generation += 1
        self.phase, self.address, self.armed = phase, address, None

    def send(self, frame: bytes) -> float:
        self._check()
        packet = parse(frame)
        assert packet is not None
        self._transmit(packet)
        return self._clock()

    def arm(self, frame: bytes) -> bool:
        self._check()
        self.armed = parse(frame)
        assert self.armed is not None and self.armed.spa == self.address
        return True

    def disarm(self) -> None:
        self._check()
        self.armed = None

    def pending(self) -> bool:
        self._check()
        if self.waiting is not None:
            return True
        if self.unread:
            self.queue += self.unread
            self.unread = []
            self.wake()
        here = self.token, self.generation
        return any((one.token, one.generation) == here for one in self.queue)

    def close(self) -> None:
        self.closed = True

    def catch(self, packet: ArpPacket, at: float | None = None) -> Received | None:
        """What the filter lets through of a frame that comes, or came `at`; the armed frame is sent first."""
        if self.closed or self.address is None or self.phase is Phase.SILENT:
            return None
        if not packet.claims(self.address, self.mac) and (
            self.phase is not Phase.PROBE or not packet.probes(self.address, self.mac)
        ):
            return None
        defended_at = None
        if self.reflex and self.armed is not None:
            armed, self.armed = self.armed, None
            with contextlib.suppress(OSError):
                self._transmit(armed)
                defended_at = self._clock()
        at = self._clock() if at is None else at
        return Received(self.token, self.generation, packet.emit(), at, defended_at)

    def read(self) -> list[Received]:
        """Read what waits, and from now on what comes."""
        waiting, self.waiting = self.waiting or [], None
        return [got for at, packet in waiting if (got := self.catch(packet, at)) is not None]

    def _check(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "the socket is closed")


class _Readable:
    """A descriptor that is readable when something waits."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def wake(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def acknowledge(self) -> None:
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            pass


class FakeListener(_Readable):
    """Opens sockets; `sent` has every frame, with its time and its socket."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.opened: list[FakeSocket] = []
        self.defended: list[bool] = []
        """For each of them, whether the kernel's defence was asked for."""
        self.sent: list[tuple[float, FakeSocket, ArpPacket]] = []
        self.macs: Collection[bytes] = ()
        self.refuse_open: int | None = None
        """The error number with which the next `open` fails."""
        self.undefended: str | None = None
        self.lost = 0
        """Conflicts for which the queue had no room."""
        self.refuse_take_over = False
        """Whether the next `take_over` fails."""
        self.handed = False
        """Between an exec and the program that takes the sockets over."""
        self.refuse_send = 0
        """So many of the next frames are refused..."""
        self.refusal = errno.ENOBUFS
        """...with this error number."""
        self._clock = clock
        self._waiting: list[Received] = []

    def open(self, index: int, mac: bytes, *, defended: bool = True) -> FakeSocket:
        if self.refuse_open is not None:
            number, self.refuse_open = self.refuse_open, None
            raise OSError(number, os.strerror(number))

        def transmit(packet: ArpPacket) -> None:
            if self.refuse_send:
                self.refuse_send -= 1
                raise OSError(self.refusal, os.strerror(self.refusal))
            self.sent.append((self._clock(), opened, packet))

        opened = FakeSocket(len(self.opened) + 1, mac, self._clock, transmit)
        opened.queue, opened.wake = self._waiting, self.wake
        self.opened.append(opened)
        self.defended.append(defended)
        return opened

    @property
    def sockets(self) -> list[FakeSocket]:
        """Those that are open."""
        return [sock for sock in self.opened if not sock.closed]

    def own(self, macs: Collection[bytes]) -> None:
        self.macs = macs

    def drain(self) -> list[Received]:
        self.acknowledge()
        waiting = [*self._waiting]
        self._waiting.clear()
        return waiting

    def deliver(self, packet: ArpPacket, *, quietly: bool = False, unread: bool = False) -> int:
        """Pass a frame to all sockets. Return how many let it through.

        `quietly`: do not wake the loop; `unread`: the helper has not read it yet.
        """
        count = 0
        for sock in self.sockets:
            if sock.waiting is not None:
                sock.waiting.append((self._clock(), packet))
            elif (received := sock.catch(packet)) is not None:
                (sock.unread if unread else self._waiting).append(received)
                count += 1
        if not quietly and not unread:
            self.wake()
        return count

    def pause(self) -> None:
        for sock in self.sockets:
            sock.waiting = []

    def resume(self) -> None:
        """Not after an exec."""
        if not self.handed:
            for sock in self.sockets:
                self._waiting += sock.read()
            self.wake()

    def take_over(self, kept: KeptSocket) -> FakeSocket:
        self.handed = False
        if self.refuse_take_over:
            self.refuse_take_over = False
            raise OSError(errno.EBADF, "bad file descriptor")
        before = self.opened[kept.descriptor - _NUMBERS - 1]
        assert (before.mac, before.phase, before.address) == (kept.mac, kept.phase, kept.address)
        before.closed = True
        sock = FakeSocket(len(self.opened) + 1, kept.mac, self._clock, before._transmit)
        sock.phase, sock.address = kept.phase, kept.address
        sock.generation, sock.attached = kept.generation, kept.attached
        sock.armed = None if kept.armed is None else parse(kept.armed)
        sock.waiting = before.waiting
        sock.queue, sock.wake = self._waiting, self.wake
        self.opened.append(sock)
        self._waiting += sock.read()
        return sock

    def of(self, mac: bytes) -> list[ArpPacket]:
        """What was sent from that hardware address."""
        return [packet for _, _, packet in self.sent if packet.sha == mac]


class FakeNeighbourRoutes:
    """The routes to neighbours, and what the kernel knows of neighbours itself."""

    def __init__(self) -> None:
        self.by: dict[IPv4Address, tuple[int, IPv4Address]] = {}
        """Interface and source of each route."""
        self.seen: list[Neighbour] = []
        self.cleared = 0

    async def add(self, index: int, address: IPv4Address, source: IPv4Address) -> None:
        await asyncio.sleep(0)
        self.by[address] = index, source

    async def remove(self, index: int, address: IPv4Address) -> None:
        await asyncio.sleep(0)
        if address in self.by and self.by[address][0] == index:
            del self.by[address]

    async def found(self) -> list[tuple[int, IPv4Address]]:
        await asyncio.sleep(0)
        return [(index, address) for address, (index, _) in self.by.items()]

    async def clear(self, *indexes: int) -> None:
        await asyncio.sleep(0)
        self.cleared += 1
        self.by = {one: route for one, route in self.by.items() if route[0] not in indexes}

    async def known(self) -> list[Neighbour]:
        await asyncio.sleep(0)
        return [*self.seen]


class FakeArp(_Readable):
    """The ARP of one link, as `kernel.neighbour_socket` reads it."""

    def __init__(self, index: int, mac: bytes) -> None:
        super().__init__()
        self.index = index
        self.mac = mac
        self.known: set[tuple[IPv4Address, bytes]] = set()
        self.lost = 0
        self.sent: list[ArpPacket] = []
        self.refuses = False
        """Whether nothing can be sent."""
        self.closed = False
        self.woken = 0
        """How often it was read."""
        self.filters = 0
        """How often its filter was replaced."""
        self._waiting: list[ArpPacket] = []

    def ignore(self, known: Iterable[tuple[IPv4Address, bytes]]) -> None:
        self.known = {*known}
        self.filters += 1

    def comes(self, *packets: ArpPacket, quietly: bool = False) -> None:
        """Frames come, or leave if they are from the interface itself; `quietly`: the loop is busy."""
        for packet in packets:
            about = packet.tpa if packet.sha == self.mac else packet.spa
            ignored = {one for one, _ in self.known} if packet.sha == self.mac else self.known
            if (about if packet.sha == self.mac else (about, packet.sha)) not in ignored:
                self._waiting.append(packet)
        if self._waiting and not quietly:
            self.wake()

    def read(self) -> list[ArpPacket]:
        self.acknowledge()
        self.woken += 1
        found, self._waiting = self._waiting[:READ_MAX], self._waiting[READ_MAX:]
        if self._waiting:
            self.wake()
        return found

    def dropped(self) -> int:
        lost, self.lost = self.lost, 0
        return lost

    def send(self, frame: bytes) -> None:
        if self.refuses:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        packet = parse(frame)
        assert packet is not None
        self.sent.append(packet)

    def close(self) -> None:
        self.closed = True
        super().close()


class FakeGivenUp:
    """For whom the kernel has asked in vain."""

    def __init__(self) -> None:
        self._found: deque[tuple[int, IPv4Address]] = deque()
        self._news = asyncio.Event()
        self.closed = False

    def gives_up(self, index: int, address: IPv4Address) -> None:
        self._found.append((index, address))
        self._news.set()

    async def next(self) -> list[tuple[int, IPv4Address]]:
        while not self._found:
            self._news.clear()
            await self._news.wait()
        return [self._found.popleft()]

    def close(self) -> None:
        self.closed = True


class FakeNetwork:
    """Links, addresses and routes. What changes is an event, also if it was asked for, as with the kernel."""

    def __init__(self) -> None:
        self.limits: list[str] = []
        self.neighbours = FakeNeighbourRoutes()
        self.strict: set[str] = set()
        """Names of the links with rp_filter = 1."""
        self.links: dict[int, Link] = {}
        self.present: dict[tuple[int, IPv4Address], Address] = {}
        self.routes: dict[tuple[str, int], IPv4Address] = {}
        self.demoted: dict[int, IPv4Address] = {}
        self.stranded: list[str] = []
        """What `remove_stranded` finds."""
        self.asked: list[tuple[Any, ...]] = []
        """Every request that changes something, in order."""
        self.prepared: list[int] = []
        """Indexes."""
        self.foreign_default = False
        self.follows_routes = False
        self.unicast: str | None = None
        self.filters: dict[int, str] = {}
        """See `by_filter`."""
        self.events: deque[Event] = deque()
        self._before: dict[str, deque[Step]] = {}
        self._after: dict[str, deque[Step]] = {}
        self.mute = False
        """While true, no event arrives: the kernel's answers overtake them."""
        self._news = asyncio.Event()
        self.losses: deque[set[int] | None] = deque()
        self.missing: list[str] = []
        """What `restore` finds missing."""
        self.attached: tuple[tuple[int, int], ...] = ()
        self.without_filter: set[int] = set()
        """Indexes; the kernel does not report that."""
        self._lost = asyncio.Event()

    # What a test does.

    def before(self, request: str, step: Step) -> None:
        """Run `step` before the next request of that name: it may wait, raise, or change something."""
        self._before.setdefault(request, deque()).append(step)

    def after(self, request: str, step: Step) -> None:
        """Run `step` when the next request of that name is done, before its answer arrives."""
        self._after.setdefault(request, deque()).append(step)

    def happens(self, *events: Event) -> None:
        self.events += events
        self._news.set()

    def speak(self) -> None:
        """Deliver all events that wait."""
        self.mute = False
        self._news.set()

    def plug(self, link: Link) -> None:
        """Add or change a link."""
        self.links[link.index] = link
        self.happens(LinkChanged(link))

    def unplug(self, index: int) -> None:
        """Remove a link with all its addresses."""
        for key in [key for key in self.present if key[0] == index]:
            self.happens(AddressRemoved(self.present.pop(key)))
        self.links.pop(index)
        self.happens(LinkRemoved(index))

    def put(self, index: int, address: str, prefixlen: int = 24, **changes: Any) -> Address:
        """Add an address to a link as somebody else."""
        found = replace(Address(index, IPv4Address(address), prefixlen, 0, None, None), **changes)
        self.present[index, found.address] = found
        self.happens(AddressAdded(found))
        return found

    def take(self, index: int, address: IPv4Address) -> None:
        """Remove an address from a link as somebody else."""
        self.happens(AddressRemoved(self.present.pop((index, address))))

    def lose_messages(self) -> None:
        """Lose all events that wait; a Resync comes instead."""
        self.events.clear()
        self.happens(Resync((*self.links.values(),), (*self.present.values(),)))

    def owned(self, index: int) -> list[IPv4Address]:
        """The addresses that autoip has put on a link."""
        return [
            a.address for a in self.present.values() if a.index == index and a.proto == PROTOCOL
        ]

    # What the daemon asks.

    async def _ask(self, request: str, *what: Any) -> None:
        self.asked.append((request, *what))
        await self._steps(self._before, request)

    async def _steps(self, steps: dict[str, deque[Step]], request: str) -> None:
        await asyncio.sleep(0)  # the kernel's answer is never there at once
        if waiting := steps.get(request):
            await waiting.popleft()()

    async def snapshot(self) -> tuple[list[Link], list[Address]]:
        return [*self.links.values()], [*self.present.values()]

    async def next_event(self) -> Event:
        while not self.events or self.mute:
            self._news.clear()
            await self._news.wait()
        return self.events.popleft()

    async def addresses(self) -> list[Address]:
        await self._steps(self._before, "addresses")
        return [*self.present.values()]

    async def prepare(self, link: Link) -> None:
        await self._steps(self._before, "prepare")
        self.prepared.append(link.index)

    async def add_address(
        self, link: Link, address: IPv4Address, *, replace: bool = False
    ) -> Address:
        await self._ask("replace" if replace else "add", link.index, address)
        if link.index not in self.links:
            raise KernelRefused(errno.ENODEV, f"add {address} to {link.name}")
        if (link.index, address) in self.present and not replace:
            raise KernelRefused(errno.EEXIST, f"add {address} to {link.name}")
        scope = RT_SCOPE_HOST - 1
        added = self.put(link.index, str(address), 16, scope=scope, proto=PROTOCOL)
        await self._steps(self._after, "add")
        return added

    async def next_losses(self) -> set[int] | None:
        while not self.losses:
            self._lost.clear()
            await self._lost.wait()
        return self.losses.popleft()

    def lose(self, index: int | None, *names: str) -> None:
        """Remove, as somebody else, what belongs to the address of a link; None: messages of that were lost."""
        self.missing += names
        self.losses.append(None if index is None else {index})
        self._lost.set()

    async def restore(self, link: Link, address: IPv4Address) -> list[str]:
        await self._ask("restore", link.index, address)
        missing, self.missing = self.missing, []
        if link.index in self.without_filter:
            self.without_filter.remove(link.index)
            missing.append("filter")
        return missing

    async def remove_address(self, index: int, address: IPv4Address) -> bool:
        await self._ask("remove", index, address)
        there = (index, address) in self.present
        if there:
            self.take(index, address)
        await self._steps(self._after, "remove")
        return there

    async def release(self, index: int) -> None:
        await self._ask("release", index)

    async def set_up(self, index: int) -> None:
        await self._ask("set_up", index)
        self.plug(replace(self.links[index], flags=READY))

    async def set_onlink(self, link: Link, source: IPv4Address) -> None:
        await self._ask("set_onlink", link.index, source)
        self.routes["onlink", link.index] = source

    async def remove_onlink(self, index: int) -> bool:
        await self._ask("remove_onlink", index)
        return self.routes.pop(("onlink", index), None) is not None

    async def demote(self, link: Link, address: IPv4Address) -> None:
        await self._ask("demote", link.index, address)
        self.demoted[link.index] = address

    async def promote(self, index: int) -> None:
        await self._ask("promote", index)
        self.demoted.pop(index, None)

    async def set_default(self, link: Link, source: IPv4Address) -> None:
        await self._ask("set_default", link.index, source)
        self.routes["default", link.index] = source

    async def remove_default(self, index: int) -> bool:
        await self._ask("remove_default", index)
        return self.routes.pop(("default", index), None) is not None

    async def remove_stranded(self, index: int, ours: IPv4Address) -> list[str]:
        await self._ask("remove_stranded", index, ours)
        found, self.stranded = self.stranded, []
        return found

    async def other_default(self) -> bool:
        await self._steps(self._before, "other_default")
        return self.foreign_default

    async def sweep(self) -> int:
        await self._ask("sweep")
        return 0

    def follow_routes(self) -> None:
        self.follows_routes = True

    def is_strict(self, link: Link) -> bool:
        return link.name in self.strict

    def by_unicast(self, _index: int) -> str | None:
        return self.unicast

    def by_filter(self, index: int) -> str | None:
        return self.filters.get(index)

    def detached(self, index: int) -> bool:
        return index in self.without_filter

    def limit(self, line: str) -> None:
        self.limits.append(line)


class FakeTimer(_Readable):
    """Readable at its time, by the loop's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.at: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: float | None) -> None:
        self.at = at
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        if at is not None:
            self._handle = asyncio.get_running_loop().call_at(at, self.wake)


class FakeClockWatch(_Readable):
    """Reports that the machine slept when the test calls `sleep`."""

    slept = 0.0

    def sleep(self) -> None:
        self.wake()

    def changed(self) -> bool:
        os.eventfd_read(self.fileno())
        return True


class FakeConnections:
    """TCP connections, by their local addresses."""

    def __init__(self) -> None:
        self.open: set[IPv4Address] = set()
        self.destroyed: list[IPv4Address] = []
        self.refuse: int | None = None
        self.hangs = False

    async def established(self, address: IPv4Address) -> bool:
        await self._answer()
        return address in self.open

    async def destroy(self, address: IPv4Address) -> int:
        await self._answer()
        self.destroyed.append(address)
        return int(address in self.open)

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.refuse is not None:
            raise KernelRefused(self.refuse, "ask for connections")


class FakeKernel:
    """All of it. Made in the loop whose clock it has."""

    def __init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.network = FakeNetwork()
        self.listener = FakeListener(self.clock)
        self.connections = FakeConnections()
        self.timer = FakeTimer()
        self.clock_watch = FakeClockWatch()
        self.arp: list[FakeArp] = []
        """All sockets for neighbours that were opened."""
        self.refuse_arp = False
        self.given_up: list[FakeGivenUp] = []

    def open_arp(self, index: int, mac: bytes) -> FakeArp:
        if self.refuse_arp:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.arp.append(FakeArp(index, mac))
        return self.arp[-1]

    def watch_given_up(self) -> FakeGivenUp:
        self.given_up.append(FakeGivenUp())
        return self.given_up[-1]

    def arp_of(self, index: int) -> FakeArp:
        """The open socket of a link."""
        (found,) = (one for one in self.arp if one.index == index and not one.closed)
        return found

    @property
    def parts(self) -> Kernel:
        """What a Daemon takes."""
        return Kernel(
            self.network,
            self.listener,
            self.connections,
            self.timer,
            self.clock_watch,
            self.clock,
            self.open_arp,
            self.watch_given_up,
        )

    def close(self) -> None:
        for part in (self.listener, self.timer, self.clock_watch):
            part.close()

"""Hosts on a virtual link with a virtual clock: the negotiation core without a kernel.

A host is the core and the kernel's part: answers to ARP requests for the address on its interface.
The link delivers, delays, loses, doubles and reorders frames, and can be cut in two. Nothing here
waits: the clock jumps from one due time to the next.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from random import Random
from typing import TypeVar

from autoip.core.acd import Defence
from autoip.core.arp import ArpPacket, Operation, parse
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Configure, Event, Ipv4ll, State, Unconfigure
from autoip.daemon.handover import KeptNegotiator
from autoip.daemon.negotiator import Negotiator
from autoip.daemon.plain import plain, read
from autoip.kernel.arp_socket import KeptSocket
from tests.unit.fake_kernel import FakeListener, FakeSocket, link_of, mac_of

T = TypeVar("T")


@dataclass
class Sent:
    """A frame that a host put on the link."""

    at: float
    host: Host
    packet: ArpPacket


class Host:
    """One host: its negotiator with its socket, and what happened to it."""

    def __init__(self, link: VirtualLink, mac: bytes, core: Ipv4ll, *, reflex: bool) -> None:
        self.link = link
        self.mac = mac
        self.core = core
        self.side = 0  # which part of a cut link it is on
        self.refuse: Callable[[float], bool] = lambda _: False  # the kernel takes no frame
        self.configure_delay = 0.0
        self.on_interface: IPv4Address | None = None
        self.events: list[tuple[float, Event]] = []
        self.held: list[tuple[IPv4Address, float, float | None]] = []
        self.ups: list[float] = []
        self._timer: float | None = None
        self.socket = FakeSocket(1, mac, lambda: link.now, self._transmit, reflex=reflex)
        self.negotiator = Negotiator(
            lambda _index, _mac: self.socket,
            lambda: link.now,
            lambda _mac: core,
            lambda _error: None,
        )
        self.negotiator.attach(link_of(mac=mac))

    def state(self) -> State:
        """Return the core's state; a call, because mypy assumes that a compared attribute never changes."""
        return self.core.state

    def of(self, kind: type[T]) -> list[T]:
        """Return the events of that kind, in order."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def receive(self, packet: ArpPacket) -> None:
        # The kernel's part: answer a request for the address on the interface, by unicast as Linux
        # does, but not one from this address, which Linux drops as a martian source.
        if (
            packet.operation is Operation.REQUEST
            and packet.tpa == self.on_interface
            and packet.spa != self.on_interface
            and packet.sha != self.mac
        ):
            answer = ArpPacket(
                Operation.REPLY, self.mac, packet.tpa, packet.sha, packet.spa, packet.sha
            )
            self.link.send(self, answer)
        if (received := self.socket.catch(packet)) is not None:
            self.negotiator.receive(received)
            self.pump()

    def _transmit(self, packet: ArpPacket) -> None:
        if self.refuse(self.link.now):
            raise OSError(errno.ENOBUFS, "no buffer space")
        self.link.send(self, packet)

    def pump(self) -> None:
        for _ in range(100):
            due = self.negotiator.poll()
            self._take_events()
            if not due:
                break
        else:
            raise AssertionError("the core does not come to rest")
        self.negotiator.watch()
        self.link.note(self)
        at = self.core.next_timer()
        if at is not None and at != self._timer:
            self.link.call_at(at, self.pump)
        self._timer = at

    def reload(self) -> None:
        """Another negotiator and another core go on, by what these hand over, through JSON and back."""
        data = json.dumps(self.negotiator.keep(self.mac), default=plain)
        kept: KeptNegotiator = read(KeptNegotiator, json.loads(data))
        before = self.core
        assert kept.core is not None and before.next_event() is None
        self.core = Ipv4ll(
            self.mac,
            before._timing,
            Random(int.from_bytes(self.mac, "big")),
            before._jitter,
            defence=before._defence,
            avoid=before._candidates._avoid,
            sibling=before._sibling,
        )
        self.core.resume(kept.core)
        self.negotiator = Negotiator(
            lambda _index, _mac: self.socket,
            lambda: self.link.now,
            lambda _mac: self.core,
            lambda _error: None,
        )
        self.negotiator.resume(kept, self.core, _Taken(self.socket))

    def link_up(self) -> None:
        self.ups.append(self.link.now)
        self.core.link_up(self.link.now)
        self.pump()

    def link_down(self) -> None:
        self.core.link_down()
        self.pump()

    def _take_events(self) -> None:
        now = self.link.now
        while (event := self.core.next_event()) is not None:
            self.events.append((now, event))
            match event:
                case Configure(address=address):
                    self.link.call_at(now + self.configure_delay, partial(self._add, address))
                case Unconfigure(address=address):
                    self._off(address)

    def _add(self, address: IPv4Address) -> None:
        assert self.on_interface is None
        self.on_interface = address
        self.held.append((address, self.link.now, None))
        self.core.configured(address, self.link.now)
        self.pump()

    def _off(self, address: IPv4Address) -> None:
        if self.on_interface == address:
            self.on_interface = None
            self.held[-1] = (address, self.held[-1][1], self.link.now)


class _Taken(FakeListener):
    """Takes over the one socket that there is."""

    def __init__(self, socket: FakeSocket) -> None:
        self._socket = socket

    def take_over(self, kept: KeptSocket) -> FakeSocket:
        socket = self._socket
        there = (socket.fileno(), socket.mac, socket.phase, socket.address)
        assert there == (kept.descriptor, kept.mac, kept.phase, kept.address)
        assert (kept.armed is not None) == (socket.armed is not None)
        socket.armed = None if kept.armed is None else parse(kept.armed)
        return socket


class VirtualLink:
    """The clock and the wire."""

    def __init__(self, seed: int = 0, *, loss: float = 0.0, double: float = 0.0) -> None:
        self.now = 100.0
        self.random = Random(seed)
        self.loss = loss
        self.double = double
        self.delay = (0.0001, 0.0002)
        self.cut = False
        self.hosts: list[Host] = []
        self.wire: list[Sent] = []
        self.record = True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        # The hosts whose filters let packets about an address through.
        self._by_address: dict[IPv4Address, dict[Host, None]] = defaultdict(dict)
        self._listed: dict[Host, IPv4Address] = {}

    def add(
        self,
        number: int,
        *,
        timing: Timing | None = None,
        defence: Defence = Defence.ONCE,
        first: IPv4Address | None = None,
        reflex: bool = False,
        avoid: Callable[[IPv4Address], bool] = lambda _: False,
        sibling: Callable[[bytes], bool] = lambda _: False,
    ) -> Host:
        mac = mac_of(number)
        core = Ipv4ll(
            mac,
            timing or Timing(),
            Random(int.from_bytes(mac, "big")),
            Random(self.random.random()),
            defence=defence,
            first=() if first is None else (first,),
            avoid=avoid,
            sibling=sibling,
        )
        host = Host(self, mac, core, reflex=reflex)
        self.hosts.append(host)
        return host

    def call_at(self, at: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(at, self.now), next(self._order), call))

    def send(self, sender: Host, packet: ArpPacket) -> None:
        # Through bytes and back, so that the codec has its part.
        again = parse(packet.emit())
        assert again == packet
        if self.record:
            self.wire.append(Sent(self.now, sender, packet))
        for host in self._concerned(packet):
            if host is sender or (self.cut and host.side != sender.side):
                continue
            if packet.destination[0] & 1 == 0 and packet.destination != host.mac:
                continue
            for _ in range(1 + (self.random.random() < self.double)):
                if self.random.random() >= self.loss:
                    at = self.now + self.random.uniform(*self.delay)
                    self.call_at(at, partial(host.receive, packet))

    def note(self, host: Host) -> None:
        """Note the address of the host's filter."""
        candidate = host.core.candidate
        if self._listed.get(host) != candidate:
            if (old := self._listed.pop(host, None)) is not None:
                del self._by_address[old][host]
            if candidate is not None:
                self._listed[host] = candidate
                self._by_address[candidate][host] = None

    def _concerned(self, packet: ArpPacket) -> list[Host]:
        """Return the hosts that have, or probe for, an address of the packet."""
        concerned: dict[Host, None] = {}
        for address in (packet.spa, packet.tpa):
            concerned.update(self._by_address[address])
        return [*concerned]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        steps = 0
        while self._queue and self._queue[0][0] <= end:
            self.now, _, call = heapq.heappop(self._queue)
            call()
            steps += 1
            assert steps < 5_000_000, "the link does not come to rest"
        self.now = end

    def probes(self, host: Host) -> list[Sent]:
        return [s for s in self.wire if s.host is host and s.packet.is_probe]

    def announcements(self, host: Host) -> list[Sent]:
        return [s for s in self.wire if s.host is host and s.packet.spa == s.packet.tpa]

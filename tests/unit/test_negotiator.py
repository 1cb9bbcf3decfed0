"""The negotiation on one link: its socket, filter and reflex, by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest

from autoip.core.arp import ArpPacket, announcement
from autoip.core.constants import Timing
from autoip.core.ipv4ll import Configure, Ipv4ll, State
from autoip.daemon.negotiator import Negotiator, offer
from autoip.kernel.arp_socket import Phase
from tests.unit.fake_kernel import FakeSocket, link_of, mac_of

A = IPv4Address("169.254.7.7")
OTHER = mac_of(99)


class World:
    """A negotiator, the sockets that it opened, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[ArpPacket] = []
        self.failed: list[OSError] = []
        self.opened: list[FakeSocket] = []
        self.refuse_open: int | None = None
        self.refuse_send = False
        self.negotiator = Negotiator(self.open, lambda: self.now, self.core, self.failed.append)

    def open(self, _index: int, mac: bytes) -> FakeSocket:
        if self.refuse_open is not None:
            raise OSError(self.refuse_open, os.strerror(self.refuse_open))
        self.opened.append(FakeSocket(len(self.opened) + 1, mac, lambda: self.now, self.transmit))
        return self.opened[-1]

    def transmit(self, packet: ArpPacket) -> None:
        if self.refuse_send:
            raise OSError(errno.ENOBUFS, "no buffer space")
        self.sent.append(packet)

    def core(self, mac: bytes) -> Ipv4ll:
        return Ipv4ll(mac, Timing(), Random(1), Random(2), first=(A,))

    def events(self) -> list[Any]:
        core = self.negotiator.core
        assert core is not None
        return [*iter(core.next_event, None)]

    def run(self, seconds: float) -> None:
        """Let time pass; what is to be configured is."""
        end = self.now + seconds
        while self.now <= end:
            while self.negotiator.poll():
                pass
            for event in self.events():
                if isinstance(event, Configure) and self.negotiator.core is not None:
                    self.negotiator.core.configured(event.address, self.now)
            self.negotiator.watch()
            at = self.negotiator.next_timer()
            if at is None or at > end:
                break
            self.now = max(at, self.now)
        self.now = end

    def bound(self) -> FakeSocket:
        assert self.negotiator.attach(link_of())
        self.negotiator.begin("test")
        self.run(60)
        assert self.state() is State.BOUND
        return self.opened[-1]

    def state(self) -> State:
        return self.negotiator.state


def test_nothing_without_a_link() -> None:
    negotiator = World().negotiator
    negotiator.begin("test")
    negotiator.detach("test")
    negotiator.watch()
    assert not negotiator.poll() and not negotiator.stand_by("x") and not negotiator.restart("x")
    assert negotiator.state is State.NO_LINK
    assert (negotiator.core, negotiator.address, negotiator.candidate) == (None, None, None)
    assert (negotiator.token, negotiator.attached, negotiator.next_timer()) == (None, False, None)


def test_the_core_stays_for_the_same_hardware_address_only() -> None:
    world = World()
    world.bound()
    core = world.negotiator.core
    world.negotiator.detach("no carrier")
    assert world.opened[0].closed and world.state() is State.NO_LINK
    world.negotiator.attach(link_of(7, mac=mac_of(2)))
    assert world.negotiator.core is core
    world.negotiator.detach("no carrier")
    world.negotiator.attach(link_of(7, mac=mac_of(3)))
    assert world.negotiator.core is not core
    assert world.negotiator.core is not None and world.negotiator.core.mac == mac_of(3)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO, errno.ENETDOWN])
def test_a_link_that_is_gone_already(number: int) -> None:
    world = World()
    world.refuse_open = number
    assert not world.negotiator.attach(link_of())
    assert not world.negotiator.attached and world.negotiator.core is None


def test_a_socket_that_cannot_be_opened() -> None:
    world = World()
    world.refuse_open = errno.EMFILE
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        world.negotiator.attach(link_of())
    assert not world.negotiator.attached


def test_the_filter_is_there_before_the_first_probe() -> None:
    world = World()
    world.negotiator.attach(link_of())
    world.negotiator.begin("test")
    (sock,) = world.opened
    seen: list[tuple[Phase, IPv4Address | None]] = []
    send: Callable[[bytes], float] = sock.send

    def noted(frame: bytes) -> float:
        seen.append((sock.phase, sock.address))
        return send(frame)

    sock.send = noted  # type: ignore[method-assign]
    world.run(2)
    assert seen and set(seen) == {(Phase.PROBE, A)}


def test_the_filter_is_set_only_when_it_must_change() -> None:
    world = World()
    sock = world.bound()
    assert (sock.phase, sock.watches) == (Phase.DEFEND, 2)
    world.run(100)
    assert sock.watches == 2
    world.negotiator.answers = True
    world.negotiator.watch()
    assert (sock.phase, sock.watches) == (Phase.ANSWER, 3)
    assert sock.armed is not None  # the new filter had disarmed it
    world.negotiator.stand_by("test")
    world.negotiator.watch()
    assert sock.phase is Phase.SILENT and sock.armed is None


def test_the_reflex_is_armed_again_when_it_may_be() -> None:
    world = World()
    sock = world.bound()
    received = sock.catch(announcement(OTHER, A))
    assert received is not None and received.defended_at is not None
    world.negotiator.receive(received)
    world.negotiator.watch()
    assert not sock.armed
    world.run(5)
    assert not sock.armed
    world.run(6)
    assert sock.armed == announcement(mac_of(2), A)


def test_the_reflex_that_was_used_is_armed_again_at_once_where_it_may() -> None:
    """The core forgets a conflict whose time is over when the frame arrives late."""
    world = World()
    sock = world.bound()
    received = sock.catch(announcement(OTHER, A))
    assert received is not None
    world.now += 20
    world.negotiator.receive(received)
    world.negotiator.poll()
    assert sock.armed == announcement(mac_of(2), A)


def test_a_frame_of_another_filter_is_dropped() -> None:
    world = World()
    sock = world.bound()
    received = sock.catch(announcement(OTHER, A))
    assert received is not None
    world.events()
    world.negotiator.receive(received._replace(generation=0))
    assert world.events() == []
    world.negotiator.receive(received._replace(frame=b"short"))
    assert world.events() == []
    world.negotiator.receive(received)
    assert len(world.events()) == 1
    world.negotiator.detach("test")
    world.events()
    world.negotiator.receive(received)
    assert world.events() == []


def test_what_the_kernel_does_not_take_is_offered_again() -> None:
    world = World()
    world.negotiator.attach(link_of())
    world.negotiator.begin("test")
    world.refuse_send = True
    world.run(5)
    assert world.sent == [] and len(world.failed) > 4
    world.refuse_send = False
    world.run(60)
    assert [packet.is_probe for packet in world.sent] == [True] * 3 + [False] * 2


def test_stand_by_and_restart() -> None:
    world = World()
    world.bound()
    assert world.negotiator.restart("test")
    assert world.state() is State.NO_LINK and world.negotiator.candidate is None
    world.negotiator.begin("again")
    assert world.negotiator.candidate == A
    assert world.negotiator.stand_by("test") and not world.negotiator.stand_by("test")
    assert not world.negotiator.restart("test")
    assert world.state() is State.STANDBY


def test_abandon() -> None:
    world = World()
    sock = world.bound()
    world.negotiator.abandon()
    assert sock.closed and world.negotiator.core is None and not world.negotiator.attached


def test_an_error_that_must_not_pass_ends_the_offer() -> None:
    world = World()
    world.negotiator.attach(link_of())
    world.negotiator.begin("test")
    world.now += 1
    core = world.negotiator.core
    assert core is not None

    def raises(error: OSError) -> None:
        raise error

    world.refuse_send = True
    (sock,) = world.opened
    with pytest.raises(OSError, match="no buffer space"):
        offer(core, sock.send, lambda: world.now, raises)
    assert not offer(core, sock.send, lambda: 0.0, raises)  # nothing is due

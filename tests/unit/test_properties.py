"""Invariants, whatever happens on the link.

Hypothesis invents hosts, losses, cuts and hostile frames; the invariants are checked on what the
hosts sent and held.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoip.core.acd import Defence
from autoip.core.arp import NO_ADDRESS, NO_HARDWARE, ArpPacket, Operation, announcement
from autoip.core.constants import DEFEND_INTERVAL, PROBE_NUM, Timing, is_candidate
from autoip.core.ipv4ll import State
from tests.unit.fake_kernel import mac_of
from tests.unit.virtual_link import Host, VirtualLink

A = IPv4Address("169.254.20.20")
STRANGER = mac_of(999)

pytestmark = pytest.mark.heavy


def check_wire(link: VirtualLink) -> None:
    """Candidates are in range, probe gaps in bounds, and nothing is used before it is held."""
    for host in link.hosts:
        timing = host.core._timing
        run: list[float] = []
        attempt = None
        for sent in link.probes(host):
            assert is_candidate(sent.packet.tpa)
            # The link that came back is a new attempt, also for the same address.
            this = sent.packet.tpa, bisect(host.ups, sent.at)
            if this == attempt and 0 < len(run) < PROBE_NUM:
                assert timing.probe_min - 1e-9 <= sent.at - run[-1]
            else:
                attempt, run = this, []
            run.append(sent.at)
        for sent in link.announcements(host):
            assert any(
                address == sent.packet.spa
                and since <= sent.at
                and (until is None or sent.at <= until)
                for address, since, until in host.held
            )


def overlaps(one: Host, other: Host, end: float) -> list[tuple[float, float]]:
    """Return when both hosts held the same address."""
    found = []
    for address, since, until in one.held:
        for address2, since2, until2 in other.held:
            start, stop = max(since, since2), min(until or end, until2 or end)
            if address == address2 and start < stop:
                found.append((start, stop))
    return found


def talk(link: VirtualLink) -> None:
    """The kernel of each host asks for some neighbour: the traffic that reveals conflicts."""
    for host in link.hosts:
        if host.on_interface is not None:
            link.send(
                host,
                ArpPacket(
                    Operation.REQUEST,
                    host.mac,
                    host.on_interface,
                    NO_HARDWARE,
                    IPv4Address("169.254.99.99"),
                ),
            )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 8),
    delay=st.sampled_from([20, 200, 2000]),
    starts=st.lists(st.floats(0, 6), min_size=8, max_size=8),
    reflex=st.booleans(),
)
def test_on_a_sound_link_no_address_is_ever_held_twice(
    seed: int, count: int, delay: int, starts: list[float], reflex: bool
) -> None:
    """All hosts try the same address first; frames arrive within the time that the RFC allows for."""
    link = VirtualLink(seed)
    for number in range(count):
        host = link.add(number + 1, first=A, timing=Timing.from_delay(delay), reflex=reflex)
        link.call_at(link.now + starts[number], host.link_up)
    link.run(60)
    talk(link)
    link.run(60)
    check_wire(link)
    for one, other in combinations(link.hosts, 2):
        assert not overlaps(one, other, link.now)
    assert all(host.state() is State.BOUND for host in link.hosts)
    held = [host.on_interface for host in link.hosts]
    assert len(set(held)) == count


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    per_side=st.integers(1, 4),
    reflex=st.booleans(),
)
def test_a_healed_partition_is_sorted_out(seed: int, per_side: int, reflex: bool) -> None:
    """Two halves that claimed the same addresses apart: one frame is enough to settle it."""
    link = VirtualLink(seed)
    link.cut = True
    for number in range(per_side):
        for side in (0, 1):
            host = link.add(
                2 * number + side + 1,
                first=IPv4Address(int(A) + number),
                timing=Timing.from_delay(200),
                reflex=reflex,
            )
            host.side = side
            host.link_up()
    link.run(10)
    assert len({host.on_interface for host in link.hosts}) == per_side
    link.cut = False
    link.run(1)
    talk(link)
    link.run(0.1)
    for one, other in combinations(link.hosts, 2):
        assert one.on_interface is None or one.on_interface != other.on_interface
    link.run(30)
    check_wire(link)
    assert all(host.state() is State.BOUND for host in link.hosts)
    assert len({host.on_interface for host in link.hosts}) == 2 * per_side


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.4),
    double=st.floats(0, 0.5),
    late=st.floats(0.0002, 1.5),
    count=st.integers(2, 6),
)
def test_a_bad_link_ends_well(
    seed: int, loss: float, double: float, late: float, count: int
) -> None:
    """Loss, duplication and reordering may let two hosts claim one address; traffic settles it."""
    link = VirtualLink(seed, loss=loss, double=double)
    link.delay = (0.0001, late)
    for number in range(count):
        link.add(number + 1, first=A, timing=Timing.from_delay(200)).link_up()
    link.run(10)
    for _ in range(60):
        talk(link)
        link.run(DEFEND_INTERVAL / 3)
    link.run(400)
    talk(link)
    link.run(60)
    check_wire(link)
    link.loss = link.double = 0.0
    link.delay = (0.0001, 0.0002)
    for _ in range(10):
        talk(link)
        link.run(20)
    held = [host.on_interface for host in link.hosts]
    assert None not in held
    assert len(set(held)) == count


TARGET = IPv4Address("255.255.255.255")
"""Stands for whatever the host has when the frame comes."""

HOSTILE = st.builds(
    lambda operation, spa, tpa, sha, to: ArpPacket(operation, sha, spa, NO_HARDWARE, tpa, to),
    st.sampled_from(Operation),
    st.sampled_from([TARGET, NO_ADDRESS, A]),
    st.sampled_from([TARGET, NO_ADDRESS, A]),
    st.sampled_from([STRANGER, mac_of(1), mac_of(998)]),
    st.sampled_from([b"\xff" * 6, mac_of(1), mac_of(5)]),
)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    attacks=st.lists(st.tuples(st.floats(0, 20), HOSTILE), max_size=60),
    flaps=st.lists(
        st.tuples(st.floats(0, 60), st.sampled_from(["up", "down", "gone"])), max_size=8
    ),
    reflex=st.booleans(),
)
def test_hostile_frames_and_a_bad_cable_break_nothing(
    seed: int,
    attacks: list[tuple[float, ArpPacket]],
    flaps: list[tuple[float, str]],
    reflex: bool,
) -> None:
    """Frames aimed at whatever the host has, at any time."""
    link = VirtualLink(seed)
    host = link.add(1, first=A, timing=Timing.from_delay(200), reflex=reflex)
    host.link_up()

    def flap(what: str) -> None:
        if what == "down":
            host.link_down()
        elif what == "up" and host.state() is State.NO_LINK:
            host.link_up()
        elif what == "gone" and host.on_interface is not None:
            host.on_interface = None
            host.core.removed(link.now)
            host.pump()

    for at, what in flaps:
        link.call_at(link.now + at, partial(flap, what))
    conflicts = 0
    for pause, packet in attacks:
        link.run(pause)
        target = host.core.candidate or A
        spa = target if packet.spa == TARGET else packet.spa
        tpa = target if packet.tpa == TARGET else packet.tpa
        aimed = ArpPacket(packet.operation, packet.sha, spa, packet.tha, tpa, packet.destination)
        conflicts += aimed.claims(target, host.mac)
        host.receive(aimed)
    check_wire(link)
    link.run(130)
    if host.state() is State.NO_LINK:
        host.link_up()
        link.run(130)
    # After the attack an address is held, whatever came before.
    assert host.state() is State.BOUND
    assert host.on_interface == host.core.address
    assert is_candidate(host.on_interface or NO_ADDRESS)


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_hosts(seed: int) -> None:
    """Ten thousand hosts switched on within ten seconds: each ends with an address of its own."""
    link = VirtualLink(seed)
    link.record = False
    for number in range(10_000):
        host = link.add(number + 1)
        link.call_at(link.now + link.random.uniform(0, 10), host.link_up)
    link.run(200)
    assert all(host.state() is State.BOUND for host in link.hosts)
    assert len({host.on_interface for host in link.hosts}) == 10_000
    # With 65,023 addresses, by chance alone hundreds of hosts try a taken one.
    moved = [host for host in link.hosts if len({a for a, _, _ in host.held}) > 1]
    assert not moved, "nobody may lose an address that it had claimed on a sound link"


def steal(host: Host) -> None:
    """Another host claims the address."""
    if host.core.candidate is not None:
        host.receive(announcement(STRANGER, host.core.candidate))


def storm(host: Host) -> None:
    """Another host claims one address after the other, until the rate limit and beyond."""
    for number in range(14):
        host.link.call_at(host.link.now + number * 0.2, partial(steal, host))


def take_off(host: Host) -> None:
    """Somebody takes the address off the interface."""
    if host.core.address is not None:
        host.on_interface = None
        host.held[-1] = (host.held[-1][0], host.held[-1][1], host.link.now)
        host.core.removed(host.link.now)
        host.pump()


def nag(host: Host) -> None:
    """The same, again and again."""
    for number in range(6):
        host.link.call_at(host.link.now + number * 1.5, partial(take_off, host))


def stand_by(host: Host) -> None:
    host.core.stand_by()
    host.pump()


def plug(host: Host) -> None:
    if host.core.state in (State.NO_LINK, State.STANDBY):
        host.link_up()


def unplug(host: Host) -> None:
    host.link_down()
    host.link.call_at(host.link.now + 1, partial(plug, host))


HAPPENS = (steal, steal, storm, storm, take_off, nag, stand_by, plug, unplug)
MOMENTS = st.floats(0, 100)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    hosts=st.integers(1, 3),
    reflex=st.booleans(),
    defence=st.sampled_from(Defence),
    happens=st.lists(
        st.tuples(MOMENTS, st.integers(0, 2), st.sampled_from(HAPPENS)), min_size=2, max_size=12
    ),
    reloads=st.lists(MOMENTS, min_size=5, max_size=30),
)
def test_a_reload_changes_nothing(
    seed: int,
    hosts: int,
    reflex: bool,
    defence: Defence,
    happens: list[tuple[float, int, Callable[[Host], None]]],
    reloads: list[float],
) -> None:
    """Whenever all hosts hand over, and however often: the same frames, events and states at the same times."""

    def run(moments: list[float]) -> VirtualLink:
        link = VirtualLink(seed, loss=0.1)
        start = link.now
        timing = Timing.from_delay(200)
        for number in range(hosts):
            host = link.add(number + 1, first=A, timing=timing, reflex=reflex, defence=defence)
            link.call_at(start + number * 0.3, partial(plug, host))
        for at, number, what in happens:
            link.call_at(start + at, partial(what, link.hosts[number % hosts]))
        for second in range(0, 180, 2):
            link.call_at(start + second + 0.123, partial(talk, link))
        for moment in sorted(moments):
            link.run(start + moment - link.now)
            for host in link.hosts:
                host.reload()
        link.run(start + 180 - link.now)
        return link

    without, link = run([]), run(reloads)
    assert [(s.at, s.host.mac, s.packet) for s in link.wire] == [
        (s.at, s.host.mac, s.packet) for s in without.wire
    ]
    for host, same in zip(link.hosts, without.hosts, strict=True):
        assert (host.events, host.held, host.state()) == (same.events, same.held, same.state())

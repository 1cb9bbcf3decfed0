"""The negotiation core on a virtual link, row by row of the requirements table.

The name of each test, or its docstring, has the id of the row that it proves.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import pairwise
from random import Random

import pytest

from autoip.core import acd, arp, constants, ipv4ll
from autoip.core.acd import Defence
from autoip.core.arp import BROADCAST, NO_ADDRESS, NO_HARDWARE, ArpPacket, Operation
from autoip.core.candidates import Pool
from autoip.core.constants import Timing, is_candidate
from autoip.core.ipv4ll import State
from autoip.errors import CoreMisuse
from tests.unit.fake_kernel import mac_of
from tests.unit.virtual_link import Host, VirtualLink

A = IPv4Address("169.254.20.20")
B = IPv4Address("169.254.33.44")
STRANGER = mac_of(999)
LONG = 30.0  # seconds, enough for any undisturbed claim


def request(spa: IPv4Address, tpa: IPv4Address, sha: bytes = STRANGER) -> ArpPacket:
    return ArpPacket(Operation.REQUEST, sha, spa, NO_HARDWARE, tpa)


def reply(spa: IPv4Address, sha: bytes = STRANGER, to: bytes = BROADCAST) -> ArpPacket:
    return ArpPacket(Operation.REPLY, sha, spa, to, NO_ADDRESS, to)


def alone(seed: int = 0, **options: object) -> tuple[VirtualLink, Host]:
    link = VirtualLink(seed)
    host = link.add(1, **options)  # type: ignore[arg-type]
    host.link_up()
    return link, host


def bound(seed: int = 0, **options: object) -> tuple[VirtualLink, Host]:
    link, host = alone(seed, first=A, **options)
    link.run(LONG)
    assert host.state() is State.BOUND
    assert host.on_interface == A
    return link, host


# --- selection ---------------------------------------------------------------------------------


class Fixed(Random):
    """A random source whose next draws are given."""

    draws: list[float]

    def random(self) -> float:
        return self.draws.pop(0)


def fixed(*draws: float) -> Fixed:
    source = Fixed(0)
    source.draws = list(draws)
    return source


def test_sel_range_both_ends() -> None:
    assert Pool().draw(fixed(0.0)) == IPv4Address("169.254.1.0")
    assert Pool().draw(fixed(1.0 - 2**-53)) == IPv4Address("169.254.254.255")
    for text, allowed in {
        "169.254.0.255": False,
        "169.254.1.0": True,
        "169.254.254.255": True,
        "169.254.255.0": False,
        "169.253.20.20": False,
        "169.255.20.20": False,
    }.items():
        assert is_candidate(IPv4Address(text)) is allowed, text


def test_sel_range_uniform() -> None:
    """Every /24 of the range is drawn about as often as every other."""
    source = Random(7)
    counts: dict[int, int] = {}
    for _ in range(254 * 400):
        octet = Pool(excluded=()).draw(source).packed[2]
        counts[octet] = counts.get(octet, 0) + 1
    assert sorted(counts) == list(range(1, 255))
    # 400 expected; six standard deviations of a binomial count are 120.
    assert all(280 < count < 520 for count in counts.values())


def test_sel_metadata() -> None:
    metadata = IPv4Address("169.254.169.254")
    offset = int(metadata) - int(constants.FIRST_CANDIDATE)
    draw = (offset + 0.5) / 65024
    assert Pool().draw(fixed(draw, 0.0)) == IPv4Address("169.254.1.0")
    assert Pool(excluded=()).draw(fixed(draw)) == metadata
    link, host = alone(first=metadata)
    link.run(LONG)
    assert host.on_interface not in (None, metadata)


def candidates(number: int, count: int = 5) -> list[IPv4Address]:
    """Return the candidates of a host that loses each of them."""
    link = VirtualLink(number)
    host = link.add(number)
    host.link_up()
    found: list[IPv4Address] = []
    for _ in range(count):
        assert host.core.candidate is not None
        found.append(host.core.candidate)
        host.receive(reply(host.core.candidate))
    return found


def test_sel_seed_same_mac_same_sequence() -> None:
    assert candidates(1) == candidates(1)
    firsts = {candidates(number, 1)[0] for number in range(1, 200)}
    assert len(firsts) > 190
    assert len(set(candidates(1, 9))) == 9


def test_sel_seed_is_stable_across_pythons() -> None:
    """The address of a hardware address never changes: people write it on the box."""
    assert [str(c) for c in candidates(1, 3)] == PINNED


PINNED = ["169.254.156.235", "169.254.187.207", "169.254.94.202"]


def test_sel_ip_then_random() -> None:
    link, host = alone(first=A)
    assert host.core.candidate == A
    host.receive(reply(A))
    assert host.core.candidate not in (None, A)
    link.run(LONG)
    assert host.state() is State.BOUND
    assert host.on_interface == candidates(1, 1)[0]


def test_sel_avoid_addresses_of_this_host() -> None:
    first = candidates(1, 1)[0]
    _, host = alone(avoid=lambda address: address == first)
    assert host.core.candidate != first
    _, host = alone(first=A, avoid=lambda address: address == A)
    assert host.core.candidate == first


def test_sel_a_lost_candidate_is_not_drawn_again() -> None:
    core = ipv4ll.Ipv4ll(mac_of(1), Timing(), fixed(0.25, 0.25, 0.25, 0.75), Random(0))
    core.link_up(0.0)
    lost = core.candidate
    assert lost is not None
    core.receive(reply(lost), 0.0)
    assert core.candidate not in (None, lost)


def test_sel_lost_candidates_are_remembered_up_to_a_bound() -> None:
    _, host = alone()
    for _ in range(constants.MAX_CONFLICTS + 5):
        host.core.conflicts.count = 0
        assert host.core.candidate is not None
        host.receive(reply(host.core.candidate))
    assert len(host.core._candidates._lost) == constants.MAX_CONFLICTS


def test_sel_draw_ends_when_everything_is_to_be_avoided() -> None:
    _, host = alone(avoid=lambda _: True)
    assert host.core.candidate is not None


# --- claim -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 200, 2000, 8000])
def test_claim_num_and_wait(delay: int) -> None:
    """claim-wait, claim-num, announce: counts and pauses of an undisturbed claim."""
    timing = Timing.from_delay(delay)
    for seed in range(200):
        link, host = alone(seed, timing=timing)
        start = link.now
        link.run(100)
        probes = link.probes(host)
        assert len(probes) == constants.PROBE_NUM
        assert 0 <= probes[0].at - start <= timing.probe_wait - timing.slack
        for one, other in pairwise(probes):
            assert timing.probe_min <= other.at - one.at <= timing.probe_max - timing.slack
        first, second = link.announcements(host)
        assert first.at - probes[-1].at == pytest.approx(timing.announce_wait)
        assert second.at - first.at == pytest.approx(constants.ANNOUNCE_INTERVAL)
        assert len(link.wire) == constants.PROBE_NUM + constants.ANNOUNCE_NUM


def test_claim_delay_scales_the_probe_phase_alone() -> None:
    assert Timing.from_delay(constants.DELAY_DEFAULT) == Timing.from_delay(2000) == Timing()
    assert Timing.from_delay(100).slack == pytest.approx(0.025)
    short = Timing.from_delay(200)
    assert (short.probe_wait, short.probe_min, short.probe_max, short.announce_wait) == (
        pytest.approx((0.1, 0.1, 0.2, 0.2))
    )
    for wrong in (0, -1, 8001):
        with pytest.raises(ValueError, match="1 to 8000"):
            Timing.from_delay(wrong)


def test_claim_pauses_use_their_whole_range() -> None:
    """The draws are random over the range, not at one end of it."""
    waits, gaps = [], []
    for seed in range(300):
        link, host = alone(seed)
        start = link.now
        link.run(10)
        one, two, three = (probe.at for probe in link.probes(host))
        waits.append(one - start)
        gaps += [two - one, three - two]
    assert min(waits) < 0.05
    assert max(waits) > 0.85
    assert min(gaps) < 1.03
    assert 1.87 < max(gaps) <= 1.9


def test_claim_probe_form() -> None:
    link, host = alone(first=A)
    link.run(LONG)
    for sent in link.probes(host):
        assert sent.packet == ArpPacket(
            Operation.REQUEST, host.mac, NO_ADDRESS, NO_HARDWARE, A, BROADCAST
        )
    for sent in link.announcements(host):
        assert sent.packet == ArpPacket(Operation.REQUEST, host.mac, A, NO_HARDWARE, A, BROADCAST)
    # What the caller is given, in order.
    assert [event for _, event in host.events if not isinstance(event, ipv4ll.Transition)] == [
        *(acd.ProbeSent(A, number) for number in (1, 2, 3)),
        ipv4ll.Configure(A),
        acd.AnnouncementSent(A, 1),
        ipv4ll.Claimed(A),
        acd.AnnouncementSent(A, 2),
    ]


def claim_until(host: Host, link: VirtualLink, state: State) -> None:
    for _ in range(10_000):
        if host.state() is state:
            return
        link.run(0.001)
    raise AssertionError(f"never {state}")


CONFLICTS = {
    "reply": reply(A),
    "reply by unicast": reply(A, to=mac_of(1)),
    "request": request(A, IPv4Address("169.254.9.9")),
    "announcement": request(A, A),
    "probe": request(NO_ADDRESS, A),
}


@pytest.mark.parametrize("name", CONFLICTS)
@pytest.mark.parametrize("state", [State.PROBING, State.ANNOUNCE_WAIT])
def test_claim_conflict(name: str, state: State) -> None:
    link, host = alone(first=A)
    claim_until(host, link, state)
    host.receive(CONFLICTS[name])
    assert host.core.candidate != A
    assert host.state() is State.PROBING
    assert host.core.conflicts.count == 1
    assert host.of(acd.Conflict) == [acd.Conflict(A, CONFLICTS[name], in_use=False)]
    verb = "probes for" if name == "probe" else "claims"
    assert f" {verb} {A}" in host.of(ipv4ll.Transition)[-1].why
    link.run(LONG)
    assert A not in [address for address, _, _ in host.held]


def test_claim_conflict_at_the_last_moment() -> None:
    link, host = alone(first=A)
    host.configure_delay = 0.5
    claim_until(host, link, State.CONFIGURING)
    host.receive(reply(A))
    link.run(LONG)
    # The kernel was asked for the address already: it must be removed again.
    assert ipv4ll.Unconfigure(A, conflict=False) in host.of(ipv4ll.Unconfigure)
    assert host.on_interface not in (None, A)
    assert not [s for s in link.announcements(host) if s.packet.spa == A]


NO_CONFLICTS = {
    "claim-echo: own probe": request(NO_ADDRESS, A, mac_of(1)),
    "claim-echo: own announcement": request(A, A, mac_of(1)),
    "claim-unicast-probe": ArpPacket(
        Operation.REQUEST, STRANGER, NO_ADDRESS, NO_HARDWARE, A, mac_of(1)
    ),
    "somebody asks for the candidate": request(IPv4Address("169.254.9.9"), A),
    "another address": reply(IPv4Address("169.254.20.21")),
    "probe for another": request(NO_ADDRESS, IPv4Address("169.254.20.21")),
    "reply with SPA 0": ArpPacket(Operation.REPLY, STRANGER, NO_ADDRESS, BROADCAST, A),
}


@pytest.mark.parametrize("name", NO_CONFLICTS)
@pytest.mark.parametrize("state", [State.PROBING, State.ANNOUNCE_WAIT, State.BOUND])
def test_no_conflict(name: str, state: State) -> None:
    link, host = alone(first=A)
    claim_until(host, link, state)
    # Straight into the core, which checks again what the filter would have stopped.
    host.core.receive(NO_CONFLICTS[name], link.now)
    host.pump()
    link.run(LONG)
    assert host.state() is State.BOUND
    assert host.on_interface == A
    assert len(link.announcements(host)) == constants.ANNOUNCE_NUM


def test_claim_rate() -> None:
    """Ten conflicts at full speed, then one candidate a minute, then full speed again."""
    link, host = alone()
    conflicts: list[float] = []
    while len(conflicts) < 14:
        claim_until_limited_or_probed(host, link)
        candidate = host.core.candidate
        assert candidate is not None
        conflicts.append(link.now)
        host.receive(reply(candidate))
    gaps = [b - a for a, b in pairwise(conflicts)]
    assert all(gap < 3 for gap in gaps[: constants.MAX_CONFLICTS - 1])
    for gap in gaps[constants.MAX_CONFLICTS - 1 :]:
        assert constants.RATE_LIMIT_INTERVAL <= gap <= 120
    assert host.state() is State.RATE_LIMITED
    link.run(constants.RATE_LIMIT_INTERVAL + LONG)
    assert host.state() is State.BOUND
    # A claim alone ends nothing: whoever conflicts after each claim is limited as well.
    conflict_twice(link, host)
    assert host.state() is State.RATE_LIMITED


def conflict_twice(link: VirtualLink, host: Host) -> None:
    """Take the address that is held: the first conflict is defended against."""
    address = host.on_interface
    assert address is not None
    host.receive(request(address, address))
    link.run(1)
    host.receive(request(address, address))


@pytest.mark.parametrize("defended", [False, True], ids=["lost", "defended"])
def test_claim_rate_ends_after_a_quiet_time(defended: bool) -> None:
    """The limit holds until there was no conflict for QUIET_INTERVAL, not even one that was defended against."""
    link, host = alone()
    for _ in range(constants.MAX_CONFLICTS):
        assert host.core.candidate is not None
        host.receive(reply(host.core.candidate))
    assert host.state() is State.RATE_LIMITED
    since = link.now
    link.run(300)
    assert host.on_interface is not None
    if defended:
        host.receive(request(host.on_interface, host.on_interface))
        since = link.now
    link.run(since + constants.QUIET_INTERVAL - link.now - 2)
    conflict_twice(link, host)
    assert host.state() is State.RATE_LIMITED
    link.run(constants.QUIET_INTERVAL)
    conflict_twice(link, host)
    assert host.state() is State.PROBING
    assert host.core.conflicts.count == 1


def claim_until_limited_or_probed(host: Host, link: VirtualLink) -> None:
    before = len(link.probes(host))
    for _ in range(200):
        link.run(1)
        if len(link.probes(host)) > before:
            return
    raise AssertionError("no probe for 200 s")


def test_claim_rate_survives_the_link() -> None:
    """A cable that is pulled and plugged in again does not lift the limit."""
    link, host = alone()
    for _ in range(constants.MAX_CONFLICTS):
        assert host.core.candidate is not None
        host.receive(reply(host.core.candidate))
    limited_at = link.now
    assert host.state() is State.RATE_LIMITED
    link.run(5)
    host.link_down()
    assert host.state() is State.NO_LINK
    host.link_up()
    assert host.state() is State.RATE_LIMITED
    link.run(150)
    assert link.probes(host)[0].at >= limited_at + constants.RATE_LIMIT_INTERVAL


def test_claim_before_use() -> None:
    link, host = alone(first=A)
    link.run(LONG)
    (address, since, until) = host.held[0]
    assert (address, until) == (A, None)
    last_probe = link.probes(host)[-1]
    assert since >= last_probe.at + constants.ANNOUNCE_WAIT
    for sent in link.wire:
        if sent.packet.spa == A:
            assert sent.at >= since


def test_no_periodic() -> None:
    link, host = bound()
    before = len(link.wire)
    assert host.core.next_timer() is None
    link.run(7 * 24 * 3600)
    assert len(link.wire) == before


def test_only_what_was_sent_counts() -> None:
    """A probe or an announcement that the kernel refused is repeated, not skipped."""
    link, host = alone(first=A)
    refused: list[float] = []

    def refuse(now: float) -> bool:
        if len(refused) % 3 < 2:
            refused.append(now)
            return True
        refused.append(now)
        return False

    host.refuse = refuse
    link.run(LONG)
    assert host.state() is State.BOUND
    assert len(link.probes(host)) == constants.PROBE_NUM
    assert len(link.announcements(host)) == constants.ANNOUNCE_NUM
    assert len(refused) == 3 * 5
    for first, second, third in zip(*[iter(refused)] * 3, strict=True):
        assert second - first == pytest.approx(constants.SEND_RETRY)
        assert third - second == pytest.approx(2 * constants.SEND_RETRY)


def test_refusals_in_a_row_make_the_pause_longer() -> None:
    """Up to a bound; what was sent makes it short again."""
    link, host = alone(first=A)
    refused: list[float] = []

    def refuse(now: float) -> bool:
        refused.append(now)
        return len(refused) <= 12 or len(refused) == 14

    host.refuse = refuse
    link.run(200)
    pauses = [second - first for first, second in pairwise(refused)]
    expected = [constants.SEND_RETRY * 2**n for n in range(7)] + [constants.SEND_RETRY_MAX] * 5
    assert pauses[:12] == pytest.approx(expected)
    assert pauses[13] == pytest.approx(constants.SEND_RETRY)
    assert host.state() is State.BOUND


# --- defence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reflex", [False, True])
def test_def_once(reflex: bool) -> None:
    """def-once, def-detect: one broadcast announcement, the address kept."""
    for conflict in (request(A, A), reply(A), request(A, IPv4Address("169.254.9.9"))):
        link, host = bound(reflex=reflex)
        link.wire.clear()
        host.receive(conflict)
        assert [s.packet for s in link.wire] == [arp.announcement(host.mac, A)]
        link.run(LONG)
        assert len(link.wire) == 1
        assert host.state() is State.BOUND
        (event,) = host.of(acd.Defended)
        assert event.reflex is reflex
        assert event.packet == conflict


@pytest.mark.parametrize("reflex", [False, True])
def test_def_yield(reflex: bool) -> None:
    """def-yield: a second conflict within DEFEND_INTERVAL of the one before."""
    link, host = bound(reflex=reflex)
    host.receive(request(A, A))
    link.run(constants.DEFEND_INTERVAL - 0.01)
    link.wire.clear()
    host.receive(request(A, A))
    assert host.on_interface is None
    assert host.state() is State.PROBING
    link.run(LONG)
    assert not [s for s in link.wire if s.packet.spa == A]
    assert host.on_interface not in (None, A)


@pytest.mark.parametrize("reflex", [False, True])
def test_def_again(reflex: bool) -> None:
    """Exactly DEFEND_INTERVAL apart is far enough."""
    link, host = bound(reflex=reflex)
    link.wire.clear()
    for _ in range(5):
        host.receive(request(A, A))
        link.run(constants.DEFEND_INTERVAL)
    assert len(link.wire) == 5
    assert host.on_interface == A


def test_def_yield_is_judged_by_when_the_frame_came() -> None:
    """A frame that waited in a queue counts from its arrival, not from its reading."""
    link, host = bound()
    host.receive(request(A, A))
    first = link.now
    link.run(constants.DEFEND_INTERVAL + 0.5)
    host.core.receive(request(A, A), first + constants.DEFEND_INTERVAL - 0.1)
    host.pump()
    assert host.on_interface is None


def test_def_once_right_after_boot() -> None:
    """A first conflict just after boot is defended: none before is not one at time zero."""
    link = VirtualLink()
    link.now = 0.0
    host = link.add(1, first=A, timing=Timing.from_delay(1))
    host.link_up()
    link.run(0.5)
    host.receive(request(A, A))
    assert host.on_interface == A


def test_def_abandon() -> None:
    link, host = bound(defence=Defence.ABANDON)
    assert host.core.reflex is None
    link.wire.clear()
    host.receive(request(A, A))
    assert host.on_interface is None
    assert host.of(ipv4ll.Unconfigure) == [ipv4ll.Unconfigure(A, conflict=True)]
    assert host.of(acd.Conflict) == [acd.Conflict(A, request(A, A), in_use=True)]
    link.run(LONG)
    assert host.core.address not in (None, A)
    assert not [s for s in link.wire if s.packet.spa == A]


def test_def_while_announcing() -> None:
    """The address is in use from the first announcement on: it is defended, and still announced."""
    link, host = alone(first=A)
    claim_until(host, link, State.ANNOUNCING)
    host.receive(request(A, A))
    assert host.on_interface == A
    link.run(LONG)
    assert host.state() is State.BOUND
    assert len(link.announcements(host)) == constants.ANNOUNCE_NUM + 1
    assert host.of(acd.Defended) == [acd.Defended(A, request(A, A), 0.0, reflex=False)]
    # The end of DEFEND_INTERVAL is a timer, but not a step that anybody waits for.
    last = host.of(ipv4ll.Transition)[-1]
    assert (last.new, last.step, last.step_at) == (State.BOUND, "", None)


@pytest.mark.parametrize("pause", [1.0, 5.0])
def test_def_yield_counts_from_a_conflict_while_announcing(pause: float) -> None:
    link, host = alone(first=A)
    claim_until(host, link, State.ANNOUNCING)
    host.receive(request(A, A))
    link.run(pause)
    assert host.state() is (State.ANNOUNCING if pause < 2 else State.BOUND)
    host.receive(request(A, A))
    assert host.on_interface is None


def test_def_refused_by_the_kernel_is_sent_when_it_can_be() -> None:
    link, host = bound()
    link.wire.clear()
    start = link.now
    host.refuse = lambda now: now < start + 0.25
    host.receive(request(A, A))
    assert not link.wire
    link.run(1)
    assert [s.packet for s in link.wire] == [arp.announcement(host.mac, A)]
    assert link.wire[0].at - start == pytest.approx(0.3)


def test_def_probed() -> None:
    """Another host's probe is answered (by the kernel) and is not a reason to give up."""
    link, host = bound()
    other = link.add(2, first=A)
    other.link_up()
    link.run(LONG)
    assert host.on_interface == A
    assert other.on_interface not in (None, A)
    assert not host.of(acd.Defended)


def armed(host: Host) -> bool:
    reflex = host.core.reflex
    assert reflex in (None, arp.announcement(host.mac, A))
    return reflex is not None


def test_reflex_is_armed_only_when_a_conflict_would_be_defended() -> None:
    link, host = alone(first=A)
    claim_until(host, link, State.ANNOUNCE_WAIT)
    assert not armed(host)
    link.run(LONG)
    assert armed(host)
    host.receive(request(A, A))
    assert not armed(host)
    link.run(constants.DEFEND_INTERVAL - 0.01)
    assert not armed(host)
    link.run(0.02)
    assert armed(host)
    host.link_down()
    assert not armed(host)


# --- the interface ---------------------------------------------------------------------------


def test_if_carrier_same_address_probed_again() -> None:
    link, host = bound()
    host.link_down()
    assert host.on_interface is None
    assert host.state() is State.NO_LINK
    link.run(100)
    link.wire.clear()
    host.link_up()
    link.run(LONG)
    assert [s.packet.tpa for s in link.probes(host)] == [A] * constants.PROBE_NUM
    assert host.on_interface == A


def test_if_carrier_taken_meanwhile() -> None:
    link, host = bound()
    host.link_down()
    other = link.add(2, first=A)
    other.link_up()
    link.run(LONG)
    host.link_up()
    link.run(LONG)
    assert other.on_interface == A
    assert host.on_interface not in (None, A)


def test_if_carrier_in_every_state() -> None:
    """Losing the link while something is under way leaves nothing on the interface."""
    for milliseconds in range(0, 9000, 61):
        link, host = alone(seed=milliseconds, first=A)
        host.configure_delay = 0.1
        link.run(milliseconds / 1000)
        host.link_down()
        host.link_down()
        link.run(1)
        assert host.on_interface is None
        assert host.state() is State.NO_LINK
        assert host.core.next_timer() is None
        host.link_up()
        assert host.core.candidate == A
        link.run(LONG)
        assert host.on_interface == A


def _removed(link: VirtualLink, host: Host) -> None:
    link.wire.clear()
    host.on_interface = None
    host.core.removed(link.now)
    host.pump()
    assert not host.of(ipv4ll.Unconfigure), "there is nothing left to take off"


def test_if_removed_it_comes_back_at_once_and_is_announced() -> None:
    link, host = bound()
    _removed(link, host)
    link.run(LONG)
    assert host.state() is State.BOUND
    assert host.on_interface == A
    assert len(link.probes(host)) == 0
    assert len(link.announcements(host)) == constants.ANNOUNCE_NUM
    # Again, long after that.
    _removed(link, host)
    link.run(LONG)
    assert (host.on_interface, len(link.probes(host))) == (A, 0)


def test_if_removed_again_soon_it_is_probed() -> None:
    link, host = bound()
    _removed(link, host)
    link.run(constants.DEFEND_INTERVAL - 0.1)
    _removed(link, host)
    assert host.on_interface is None
    assert host.state() is State.PROBING
    link.run(LONG)
    assert host.on_interface == A
    assert len(link.probes(host)) == constants.PROBE_NUM


def test_a_removal_does_not_make_a_conflict_forgotten() -> None:
    """def-yield: an address that was removed after a conflict is given up at the next one, if that is soon."""
    link, host = bound()
    host.receive(arp.announcement(STRANGER, A))
    _removed(link, host)
    link.run(1.0)
    assert host.core.address == A
    host.receive(arp.announcement(STRANGER, A))
    lost = host.of(ipv4ll.Unconfigure)
    assert [event.conflict for event in lost] == [True]


def test_if_removed_again_and_again_is_not_fought_at_full_speed() -> None:
    link, host = alone(first=A, timing=Timing.from_delay(1))
    times: list[float] = []
    for _ in range(14):
        for _ in range(100_000):
            if host.on_interface is not None:
                break
            link.run(0.01)
        times.append(link.now)
        host.on_interface = None
        host.core.removed(link.now)
        host.pump()
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps[: constants.MAX_CONFLICTS - 1]) < 1
    assert min(gaps[constants.MAX_CONFLICTS - 1 :]) >= constants.RATE_LIMIT_INTERVAL


def test_if_resume_probes_again() -> None:
    link, host = bound()
    link.wire.clear()
    host.link_down()
    host.link_up()
    assert host.on_interface is None
    link.run(LONG)
    assert host.core.address == A
    assert len(link.probes(host)) == constants.PROBE_NUM


def test_configure_failed_is_tried_again() -> None:
    link, host = alone(first=A)
    core = host.core
    for _ in range(10_000):
        core.handle_timer(link.now)
        if core.to_send(link.now) is not None:
            core.sent(link.now)
        if core.state is State.CONFIGURING:
            break
        link.now += 0.01
    core.configure_failed(A, link.now, "no memory")
    assert host.state() is State.PAUSED
    assert core.remembered == A
    assert core.next_timer() == link.now + 10.0
    core.configured(A, link.now)
    core.handle_timer(link.now + constants.CONFIGURE_RETRY)
    assert host.state() is State.PROBING
    assert core.candidate == A


def test_if_removed_after_exactly_defend_interval_is_not_soon() -> None:
    link, host = bound()
    _removed(link, host)
    link.run(0.0)
    assert host.on_interface == A
    link.run(constants.DEFEND_INTERVAL)
    _removed(link, host)
    assert host.state() is State.CONFIGURING


# --- one address by itself -----------------------------------------------------------------------


def announcing(sibling: bytes = b"") -> acd.Acd:
    """A detector whose address was put on the interface at 0.0, and not announced yet."""
    detector = acd.Acd(A, mac_of(1), Timing(), Random(0), -20.0, sibling=sibling.__eq__)
    while not isinstance(detector.state, acd.Configuring):
        at = detector.next_timer()
        assert at is not None
        detector.handle_timer(at)
        if detector.to_send(at) is not None:
            detector.sent(at)
    detector.announce(0.0)
    while detector.next_event() is not None:
        pass
    return detector


def state_of(detector: acd.Acd) -> acd.State:
    """A call, because mypy takes an attribute to stay as it was compared."""
    return detector.state


def test_acd_without_siblings_ends_with_a_conflict() -> None:
    detector = acd.Acd(A, mac_of(1), Timing(), Random(0), 0.0)
    detector.state = acd.Configuring()
    detector.receive(reply(A), 1.0)
    assert detector.next_event() == acd.Conflict(A, reply(A), in_use=False)
    assert state_of(detector) == acd.Ended()
    assert detector.listen is acd.Listen.NOTHING


def test_acd_that_gives_up_has_ended() -> None:
    detector = announcing()
    detector.receive(reply(A), 1.0, 1.25)
    assert detector.next_event() == acd.Defended(A, reply(A), 0.25, reflex=True)
    assert state_of(detector).guard.last_conflict == 1.0  # type: ignore[union-attr]
    # The second one within the interval, also if the helper did not know of the first, and answered.
    detector.receive(reply(A), 2.0, 2.5)
    assert detector.next_event() == acd.Conflict(A, reply(A), in_use=True)
    assert state_of(detector) == acd.Ended()
    later = announcing()
    later.receive(reply(A), 1.0, 1.25)
    later.next_event()
    later.receive(reply(A), 1.0 + constants.DEFEND_INTERVAL, 12.0)
    assert later.next_event() == acd.Defended(A, reply(A), 1.0, reflex=True)
    later.receive(reply(A), 12.5)
    assert later.next_event() == acd.Conflict(A, reply(A), in_use=True)


def test_acd_sibling_while_announcing() -> None:
    detector = announcing(SIBLING)
    detector.receive(reply(A, SIBLING), 1.0)
    assert detector.state == acd.Announcing(0, 0.0, acd.Guard())


def test_acd_defence_that_is_refused_while_announcing() -> None:
    """The defence is offered again by itself; the announcement stays due when it was."""
    detector = announcing()
    detector.sent(0.0)
    detector.next_event()
    detector.receive(reply(A), 1.0)
    assert detector.next_timer() == 1.0
    detector.refused(1.0)
    assert detector.next_timer() == 1.0 + constants.SEND_RETRY
    detector.sent(1.5)
    assert detector.next_event() == acd.Defended(A, reply(A), 0.5, reflex=False)
    assert detector.next_timer() == constants.ANNOUNCE_INTERVAL


def test_acd_reflex_while_the_kernel_refuses_announcements() -> None:
    detector = announcing()
    detector.receive(reply(A), 0.0, 0.0)
    detector.refused(constants.DEFEND_INTERVAL - constants.SEND_RETRY / 2)
    assert detector.reflex is None
    assert detector.next_timer() == constants.DEFEND_INTERVAL
    detector.handle_timer(constants.DEFEND_INTERVAL)
    assert detector.reflex == arp.announcement(mac_of(1), A)


# --- the contract of the core --------------------------------------------------------------------


def test_misuse_is_refused() -> None:
    link, host = alone()
    with pytest.raises(CoreMisuse, match="link_up"):
        host.core.link_up(link.now)
    host.core.link_down()
    with pytest.raises(CoreMisuse):
        host.core.sent(link.now)
    with pytest.raises(CoreMisuse):
        host.core.refused(link.now)
    detector = acd.Acd(A, mac_of(1), Timing(), Random(0), 0.0)
    with pytest.raises(CoreMisuse):
        detector.announce(0.0)
    with pytest.raises(CoreMisuse, match="removed"):
        detector.removed()
    with pytest.raises(CoreMisuse, match="cannot be left"):
        detector._go(acd.Trigger.GIVEN_UP, acd.Ended())
    detector.receive(reply(A), 0.0)
    assert detector.state == acd.Ended()
    with pytest.raises(CoreMisuse):
        detector.sent(0.0)
    with pytest.raises(CoreMisuse):
        detector.refused(0.0)


def test_every_transition_of_the_table_happens() -> None:
    """The table has exactly the transitions that the code makes."""
    seen: set[tuple[type, acd.Trigger]] = set()
    original = acd.Acd._go

    def spy(self: acd.Acd, trigger: acd.Trigger, state: acd.State) -> None:
        seen.add((type(self.state), trigger))
        original(self, trigger, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acd.Acd, "_go", spy)
        for state in (State.PROBING, State.ANNOUNCE_WAIT, State.ANNOUNCING, State.BOUND):
            for defence in Defence:
                link, host = alone(first=A, defence=defence)
                claim_until(host, link, state)
                host.receive(request(A, A))
        test_claim_conflict_at_the_last_moment()
        for state in (State.ANNOUNCING, State.BOUND):
            link, host = alone(first=A)
            claim_until(host, link, state)
            _removed(link, host)
    assert seen == set(acd.TRANSITIONS)


def test_transitions_are_reported_once_each() -> None:
    _, host = bound()
    host.receive(request(A, A))
    host.receive(request(A, A))
    host.link_down()
    changes = host.of(ipv4ll.Transition)
    names = [(e.old.value, e.new.value) for e in changes]
    assert names == [
        ("no-link", "probing"),
        ("probing", "announce-wait"),
        ("announce-wait", "configuring"),
        ("configuring", "announcing"),
        ("announcing", "bound"),
        ("bound", "probing"),
        ("probing", "no-link"),
    ]
    assert [e.why for e in changes[:5]] == [
        "link is ready",
        "3 probes sent",
        "nobody objected",
        "address is on the interface",
        "2 announcements sent",
    ]
    assert [e.lost for e in changes] == [False] * 5 + [True, False]
    given_up = changes[5]
    assert "02:00:00:00:03:e7" in given_up.why
    assert given_up.step == "probe 1/3"
    assert given_up.step_at is not None


def test_the_constants_are_those_of_the_rfc() -> None:
    """RFC 3927 section 9."""
    assert (constants.PROBE_WAIT, constants.PROBE_NUM) == (1, 3)
    assert (constants.PROBE_MIN, constants.PROBE_MAX) == (1, 2)
    assert (constants.ANNOUNCE_WAIT, constants.ANNOUNCE_NUM, constants.ANNOUNCE_INTERVAL) == (
        2,
        2,
        2,
    )
    assert (constants.MAX_CONFLICTS, constants.RATE_LIMIT_INTERVAL) == (10, 60)
    assert constants.DEFEND_INTERVAL == 10


CHANGED = {
    "PROBE_NUM": (acd, 5),
    "ANNOUNCE_NUM": (acd, 4),
    "ANNOUNCE_INTERVAL": (acd, 7.0),
    "DEFEND_INTERVAL": (acd, 40.0),
    "MAX_CONFLICTS": (ipv4ll, 3),
    "RATE_LIMIT_INTERVAL": (ipv4ll, 90.0),
    "QUIET_INTERVAL": (ipv4ll, 1.0),
    "PROBE_WAIT": (None, Timing(probe_wait=9.0)),
    "PROBE_MIN": (None, Timing(probe_min=1.9)),
    "PROBE_MAX": (None, Timing(probe_max=9.0)),
    "ANNOUNCE_WAIT": (None, Timing(announce_wait=9.0)),
}


def biography(timing: Timing) -> list[tuple[float, bytes]]:
    """Return all that a host sends in a life with every kind of conflict."""
    link = VirtualLink(3)
    host = link.add(1, first=A, timing=timing)
    host.link_up()
    link.run(40)
    for pause in (20, 1, 30):
        if host.on_interface is not None:
            host.receive(request(host.on_interface, host.on_interface))
        link.run(pause)
    for _ in range(12):
        if host.core.candidate is not None:
            host.receive(reply(host.core.candidate))
        if host.core.candidate is not None:
            host.receive(request(host.core.candidate, host.core.candidate))
        link.run(2.5)
    link.run(200)
    return [(round(sent.at, 6), sent.packet.emit()) for sent in link.wire]


@pytest.mark.parametrize("name", CHANGED)
def test_each_constant_changes_behaviour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that is defined and never used would change nothing."""
    before = biography(Timing())
    assert before == biography(Timing())
    module, value = CHANGED[name]
    if isinstance(value, Timing):
        assert biography(value) != before
    else:
        assert hasattr(constants, name)
        monkeypatch.setattr(module, name, value)
        assert biography(Timing()) != before


# --- a sibling on the same link ------------------------------------------------------------------


SIBLING = mac_of(2)


@pytest.mark.parametrize("packet", [request(A, B, SIBLING), reply(A, SIBLING)])
def test_claim_echo_sibling_in_use(packet: ArpPacket) -> None:
    """claim-echo: ARP of our own kernel for the address from a sibling is not a conflict."""
    link, host = bound(sibling=SIBLING.__eq__)
    link.wire.clear()
    for _ in range(3):
        host.receive(packet)
    link.run(LONG)
    assert host.on_interface == A
    assert link.wire == []
    assert not host.of(acd.Defended) and not host.of(acd.Conflict)
    # That of any other host is.
    host.receive(request(A, B))
    assert len(host.of(acd.Defended)) == 1


@pytest.mark.parametrize("packet", [request(A, B, SIBLING), request(NO_ADDRESS, A, SIBLING)])
def test_claim_echo_sibling_before_use(packet: ArpPacket) -> None:
    """3.4: before use it is, so that two interfaces on one link get different addresses."""
    link, host = alone(first=A, sibling=SIBLING.__eq__)
    link.run(2.0)
    assert host.state() is State.PROBING
    host.receive(packet)
    link.run(LONG)
    assert host.state() is State.BOUND and host.on_interface != A


def test_sibling_while_the_kernel_is_asked() -> None:
    """The kernel may answer on the sibling before the core has the call of `configured`."""
    link, host = alone(first=A, sibling=SIBLING.__eq__)
    host.configure_delay = 1.0
    while host.state() is not State.CONFIGURING:
        link.run(0.05)
    host.receive(reply(A, SIBLING))
    assert host.state() is State.CONFIGURING
    link.run(LONG)
    assert host.on_interface == A


def test_address_elsewhere() -> None:
    """An address on a sibling is given up, not as lost to another host, and not tried again at once."""
    link, host = bound()
    host.core.elsewhere(B, link.now)
    assert host.state() is State.BOUND
    host.core.elsewhere(A, link.now)
    host.pump()
    assert host.of(ipv4ll.Unconfigure) == [ipv4ll.Unconfigure(A, conflict=False)]
    assert host.core.candidate != A
    link.run(LONG)
    assert host.state() is State.BOUND and host.on_interface != A


def test_addresses_elsewhere_are_rate_limited() -> None:
    """claim-rate: the limit holds for addresses on siblings too."""
    link, host = alone()
    host.configure_delay = 10000.0
    for _ in range(constants.MAX_CONFLICTS):
        link.run(LONG)
        assert host.core.candidate is not None
        host.core.elsewhere(host.core.candidate, link.now)
        host.pump()
    assert host.state() is State.RATE_LIMITED


def gone_on(host: Host) -> None:
    """Another core takes over, and has all that the one before had."""
    before = host.core
    host.reload()
    after = host.core
    assert after is not before and after.keep() == before.keep()
    assert (after.state, after.candidate, after.address) == (
        before.state,
        before.candidate,
        before.address,
    )
    assert (after.next_timer(), after.listen, after.reflex) == (
        before.next_timer(),
        before.listen,
        before.reflex,
    )


def test_another_core_goes_on_in_each_state() -> None:
    link, host = alone(1)
    seen = set()
    for _ in range(constants.MAX_CONFLICTS):
        for _ in range(30):
            seen.add(host.core.state)
            gone_on(host)
            link.run(0.4)
        assert host.core.address is not None
        for _ in range(2):
            host.receive(reply(host.core.candidate or A))
            gone_on(host)
    assert host.state() is State.RATE_LIMITED
    kept = host.core.keep()
    assert kept.conflicts == constants.MAX_CONFLICTS and kept.last_conflict == link.now
    host.link_down()
    gone_on(host)
    host.link_up()
    assert host.state() is State.RATE_LIMITED  # the limit outlives the link, and the program
    gone_on(host)
    link.run(constants.RATE_LIMIT_INTERVAL + 30)
    gone_on(host)
    assert host.state() is State.BOUND and host.core.keep().held_since is not None
    assert seen >= {State.PROBING, State.ANNOUNCE_WAIT, State.ANNOUNCING, State.BOUND}
    host.on_interface = None
    host.core.removed(link.now)
    host.pump()
    gone_on(host)
    assert host.core.keep().removals == 1


def test_a_kernel_that_refuses_is_asked_every_10_s_at_most() -> None:
    assert constants.SEND_RETRY_MAX == 10.0

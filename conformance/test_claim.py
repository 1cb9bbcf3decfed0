"""From the first probe to the last announcement (RFC 3927, 2.2 to 2.4)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

import pytest

from lab import ArpFrame, Neighbour, echoes, frames
from lab.neighbour import Rule

from .case import LATE, PATIENCE, RIVAL, Case, after, gaps_text, listed, seconds
from .device import Machine
from .rows import (
    ANNOUNCE_INTERVAL,
    ANNOUNCE_NUM,
    ANNOUNCE_WAIT,
    LONGEST_PAUSE,
    MAX_CONFLICTS,
    PROBE_MAX,
    PROBE_MIN,
    PROBE_NUM,
    PROBE_WAIT,
    RATE_LIMIT_INTERVAL,
)
from .test_selection import tried

COMMON = IPv4Address("169.254.77.7")


def claim_all(case: Case, number: int) -> list[tuple[Machine, IPv4Address]]:
    """So many machines side by side, each with another MAC; each has made its claim."""
    machines = [case.machine(mac=f"02:00:00:00:{index:02x}:01") for index in range(number)]
    for machine in machines:
        machine.start()
    return [(machine, case.claimed(machine)) for machine in machines]


@pytest.mark.row("claim-wait", seconds=30)
def test_random_pause_before_the_first_probe(case: Case) -> None:
    """Seen between a conflict and the next candidate: when a program starts is not on the wire."""
    pauses: list[float] = []
    for index in range(2):
        machine = case.machine(mac=f"02:00:00:01:00:{index:02x}")
        tried(case, machine, MAX_CONFLICTS)
        probes = machine.port.sniffer.probes()
        for conflict in machine.port.sniffer.arp(from_host=False):
            later = after(probes, conflict.ns)
            if later and later[0].tpa != conflict.spa:
                pauses.append((later[0].ns - conflict.ns) / 1e9)
    pauses.sort()
    case.require(len(pauses) >= 8, f"only {len(pauses)} conflicts were followed by a candidate")
    spread = pauses[-3] - pauses[2]
    middle = statistics.median(pauses)
    text = f"{seconds(pauses[0])} to {seconds(pauses[-1])} in {len(pauses)} conflicts"
    case.require(spread > 0.1, f"no random pause: {text}, half of them below {seconds(middle)}")
    case.require(middle < PROBE_WAIT, f"pauses of {text}, half of them over {seconds(middle)}")
    case.holds(text)


@pytest.mark.row("claim-probe", seconds=15)
def test_probe(case: Case) -> None:
    machine = case.machine()
    address = case.claim(machine)
    sent = [
        frame
        for frame in machine.port.sniffer.arp()
        if frame.tpa == address and frame.spa != address
    ]
    case.require(sent, f"{address} was announced without a probe")
    good = frames.probe(machine.port.mac, address)
    for frame in sent:
        wrong = {
            "operation": frame.op != frames.REQUEST,
            "destination": not frame.broadcast,
            "sender hardware address": frame.sha != machine.port.mac,
            "Ethernet source": frame.source != machine.port.mac,
            "sender IP": frame.spa != frames.NO_ADDRESS,
            "target hardware address": frame.tha != frames.NO_MAC,
        }
        names = [name for name, is_wrong in wrong.items() if is_wrong]
        case.require(not names, f"{frame}: wrong {listed(names)} (target {frame.tha})")
        case.require(frame.data[:42] == good, f"not a probe: {frame.data.hex()}")
    case.holds(f"{len(sent)} probes")


@pytest.mark.row("claim-num", seconds=25)
def test_three_probes(case: Case) -> None:
    gaps: list[float] = []
    for machine, address in claim_all(case, 4):
        probes = case.probes(machine, address)
        if len(probes) != PROBE_NUM:
            case.short(f"{len(probes)} probes ({gaps_text(probes)} apart)")
        gaps += frames.gaps(probes)
    text = f"{seconds(min(gaps))} to {seconds(max(gaps))} apart"
    # A stamp may be early by what the timer of another clock rounds.
    case.require(min(gaps) >= PROBE_MIN - 0.002, f"probes {text}, less than {PROBE_MIN} s")
    case.require(max(gaps) <= PROBE_MAX + LATE, f"probes {text}, more than {PROBE_MAX} s")
    case.require(statistics.pstdev(gaps) > 0.02, f"probes {text}: not at random")
    case.holds(f"{PROBE_NUM} probes, {text}")


CONFLICTS: dict[str, Callable[[IPv4Address], bytes]] = {
    "a reply": lambda a: frames.conflict_reply(RIVAL, a),
    "a request for another host": lambda a: frames.conflict_request(RIVAL, a),
    "a probe": lambda a: frames.probe(RIVAL, a),
    "an announcement": lambda a: frames.announcement(RIVAL, a),
}


@pytest.mark.parametrize("what", CONFLICTS)
@pytest.mark.row("claim-conflict", seconds=16)
def test_conflict_while_probing(case: Case, what: str) -> None:
    machine = case.machine()
    machine.start()
    address = case.probe(machine).tpa
    sent = machine.port.send_stamped(CONFLICTS[what](address))
    _gave_up(case, machine, address, sent, what)
    case.holds(f"{what} while probing")


@pytest.mark.parametrize("what", ["a reply", "a probe"])
@pytest.mark.row("claim-conflict", seconds=20)
def test_conflict_after_the_last_probe(case: Case, what: str) -> None:
    machine = case.machine()
    machine.start()
    address = case.probe(machine).tpa
    case.wait(machine, lambda f: f.is_probe and f.tpa == address, PROBE_NUM, "fewer than 3 probes")
    time.sleep(ANNOUNCE_WAIT * 0.6)
    if machine.port.sniffer.announcements(address):
        case.short(f"{address} is announced before {ANNOUNCE_WAIT} s after the last probe are over")
    sent = machine.port.send_stamped(CONFLICTS[what](address))
    _gave_up(case, machine, address, sent, what)
    case.holds(f"{what} 1.2 s after the last probe")


def _gave_up(case: Case, machine: Machine, address: IPv4Address, sent: int, what: str) -> None:
    """Check for another candidate after this stamp, and not this one any more."""
    sniffer = machine.port.sniffer

    def another() -> bool:
        return any(f.tpa != address for f in after(sniffer.probes(), sent))

    otherwise = f"{what} for the candidate {address}: no other one is tried"
    case.until(lambda: another() or address in machine.link_local(), otherwise)
    case.require(another(), otherwise)
    # A probe may already have been on its way.
    again = [f for f in after(sniffer.arp(), sent + 200_000_000) if address in (f.spa, f.tpa)]
    case.require(not again, f"{what} for the candidate {address}: it goes on with it")


@pytest.mark.row("claim-echo", seconds=22)
def test_own_frames_reflected(case: Case) -> None:
    machine = case.machine()
    machine.port.neighbour(echoes)
    address = case.settled(machine)
    names = {f.tpa for f in machine.port.sniffer.probes()}
    case.require(names == {address}, f"own probes, reflected: candidates {listed(sorted(names))}")
    machine.host.send_udp("169.254.99.99")
    time.sleep(3)
    held = machine.link_local()
    case.require(held == [address], f"own frames, reflected: it has {listed(held) or 'nothing'}")
    number = len(machine.port.sniffer.announcements(address))
    if number > ANNOUNCE_NUM + 1:
        case.short(
            f"own announcements, reflected: {number} announcements, it defends against itself"
        )
    case.holds("probes, announcements and requests came back, one candidate")


@pytest.mark.parametrize("first", [None, COMMON], ids=["at random", "the same candidate"])
@pytest.mark.row("claim-echo", seconds=25)
def test_two_interfaces_on_one_link(case: Case, first: IPv4Address | None) -> None:
    if first:
        case.needs("candidate")
    machine = case.machine(plugged=True)
    second = case.switch.attach(machine.host, "eth1", plugged=True)
    case.sniffers.append(second.sniffer)
    if "several" in case.about.can:
        machine.start(candidate=first, interfaces=["eth0", "eth1"])
    else:
        machine.start(candidate=first, interfaces=["eth0"])
        machine.start(candidate=first, interfaces=["eth1"])
    has = machine.host.link_local
    case.until(
        lambda: len(has("eth0")) == len(has("eth1")) == 1 and has("eth0") != has("eth1"),
        "two interfaces on one link do not come to two addresses",
        60,
    )
    time.sleep(6)
    one, other = has("eth0"), has("eth1")
    case.require(
        len(one) == len(other) == 1 and one != other,
        f"two interfaces on one link: {listed(one)} and {listed(other)}",
    )
    defences = [
        frame
        for port in (machine.port, second)
        for address in (*one, *other)
        for frame in port.sniffer.announcements(address)
    ]
    case.require(len(defences) <= 2 * ANNOUNCE_NUM + 2, "the two defend against each other")
    both = "two interfaces on one link" + (", told the same candidate" if first else "")
    case.holds(f"{both}: two addresses")


@pytest.mark.row("claim-unicast-probe", seconds=22)
def test_unicast_probe(case: Case) -> None:
    machine = case.machine()
    machine.start()
    mac = machine.port.mac
    address = case.probe(machine).tpa
    machine.port.send(frames.probe(RIVAL, address, destination=mac))
    case.wait(machine, lambda f: f.is_probe, 2, "it does not go on probing")
    machine.port.send(frames.probe(RIVAL, address, destination=mac))
    case.claimed(machine)
    names = list(dict.fromkeys(f.tpa for f in machine.port.sniffer.probes()))
    case.require(names == [address], f"a unicast probe for {address}: it takes another candidate")
    case.quiet(machine)
    machine.port.send(frames.probe(RIVAL, address, destination=mac))
    time.sleep(3)
    case.require(machine.link_local() == [address], f"a unicast probe for {address}: given up")
    case.holds("a unicast probe changes nothing")


def in_use_until_limited() -> Rule:
    """A neighbour has each candidate until one is long in coming, but no more than 11 of them."""
    tried: dict[IPv4Address, float] = {}

    def rule(host: Neighbour, frame: ArpFrame) -> Iterable[bytes]:
        if frame.is_probe and frame.tpa not in tried:
            before, now = max(tried.values(), default=0.0), time.monotonic()
            tried[frame.tpa] = now
            limited = len(tried) > MAX_CONFLICTS and now - before > RATE_LIMIT_INTERVAL / 2
            if len(tried) <= MAX_CONFLICTS + 1 and not limited:
                return [frames.answer(host.mac, frame)]
        return []

    return rule


@pytest.mark.row("claim-rate", seconds=150)
def test_rate_limit(case: Case) -> None:
    """B I.3. The RFC limits when conflicts *exceed* 10; to limit the 11th candidate is well too."""
    machine = case.machine()
    sniffer = machine.port.sniffer
    machine.port.neighbour(in_use_until_limited())
    machine.start()

    def firsts() -> list[ArpFrame]:
        """Return the first probe for each candidate."""
        return list({frame.tpa: frame for frame in reversed(sniffer.probes())}.values())[::-1]

    case.until(
        lambda: len(firsts()) >= MAX_CONFLICTS, "10 candidates in use: no more are tried", 90
    )
    case.until(
        lambda: len(firsts()) > MAX_CONFLICTS and len(sniffer.probes(firsts()[-1].tpa)) > 1,
        f"no candidate is left in peace within {LONGEST_PAUSE + RATE_LIMIT_INTERVAL:.0f} s",
        LONGEST_PAUSE + RATE_LIMIT_INTERVAL,
    )
    seen = firsts()
    limited = len(seen)
    pause = (seen[limited - 1].ns - seen[limited - 2].ns) / 1e9
    # The pause before the first probe is drawn anew each time.
    if pause < RATE_LIMIT_INTERVAL - PROBE_WAIT:
        case.short(
            f"candidate {limited} comes {seconds(pause)} after the one before it:"
            f" no limit after {MAX_CONFLICTS} conflicts",
            since=seen[limited - 3].ns,
        )
    case.require(pause <= LONGEST_PAUSE, f"a pause of {seconds(pause)} between two candidates")
    address = case.claimed(machine, timeout=LONGEST_PAUSE)
    announced = sniffer.announcements(address)[0]
    recovered = (announced.ns - max(f.ns for f in sniffer.arp(from_host=False))) / 1e9
    case.require(recovered < LONGEST_PAUSE, f"claimed {seconds(recovered)} after the last conflict")
    case.quiet(machine)
    # Whether this claim restarts the count or not: no pause is longer.
    since = sniffer.mark()
    sent = case.conflict(machine.port, address)
    time.sleep(0.5)
    if address in machine.link_local():
        sent = case.conflict(machine.port, address)
    what = "after a claim, a conflict: no other candidate"
    fresh = case.probe(machine, what, since=since, timeout=LONGEST_PAUSE)
    wait = (fresh.ns - sent) / 1e9
    case.require(wait <= LONGEST_PAUSE, f"{what} for {seconds(wait)}")
    case.holds(
        f"{seconds(pause)} between two candidates, claimed {seconds(recovered)} after the last"
        f" conflict; after the next one another candidate in {seconds(wait)}"
    )


@pytest.mark.row("claim-before-use", seconds=15)
def test_not_used_before(case: Case) -> None:
    machine = case.machine()
    address = case.claim(machine)
    probes = case.probes(machine, address)
    case.require(probes, f"{address} was announced without a probe")
    end = probes[-1].ns + round((ANNOUNCE_WAIT - 0.002) * 1e9)
    early = [f for f in machine.port.sniffer.arp() if f.spa == address and f.ns < end]
    if early:
        wait = (early[0].ns - probes[-1].ns) / 1e9
        case.short(f"used {seconds(wait)} after the last probe: {early[0]}")
    added, _, _ = machine.monitor.wait_for(
        lambda added, entry: added and entry.address == address, PATIENCE
    )
    wait = (added - probes[-1].ns) / 1e9
    case.require(added >= end, f"on the interface {seconds(wait)} after the last probe")
    case.holds(f"on the interface {seconds(wait)} after the last probe")


@pytest.mark.row("announce", seconds=25)
def test_announcements(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    time.sleep(4)
    own = [f for f in machine.port.sniffer.arp() if f.spa == address]
    gratuitous = [f for f in own if f.tpa == address]
    if len(gratuitous) != ANNOUNCE_NUM:
        case.short(f"{len(gratuitous)} announcements ({gaps_text(gratuitous)} apart)")
    for frame in gratuitous:
        case.require(frame.is_announcement, f"not an announcement: {frame}")
        case.require(frame.sha == machine.port.mac, f"of another hardware address: {frame}")
    gap = frames.gaps(gratuitous)[0]
    # The RFC's seconds are no tighter than this; some programs have timers of a quarter of a second.
    case.require(
        ANNOUNCE_INTERVAL - 0.005 <= gap <= ANNOUNCE_INTERVAL + 0.5,
        f"{seconds(gap)} between two announcements",
    )
    case.holds(f"{len(gratuitous)} announcements, {seconds(gap)} apart")


@pytest.mark.row("no-periodic", seconds=80)
def test_silence(case: Case) -> None:
    watched = 65.0
    machine = case.machine()
    address = case.settled(machine)
    since = machine.port.sniffer.mark()
    time.sleep(watched)
    sent = machine.port.sniffer.arp(since)
    case.require(not sent, f"{len(sent)} ARP frames in {watched:.0f} s: {sent[:1]}")
    case.require(machine.link_local() == [address], f"{address} is gone")
    case.holds(f"no ARP frame in {watched:.0f} s")

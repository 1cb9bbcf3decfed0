"""Which addresses are tried (RFC 3927, 2.1)."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

import pytest

from lab import ArpFrame, answers_probes

from .case import Case, listed
from .device import Machine
from .rows import MAX_CONFLICTS
from .verdict import FallsShort

FIRST, LAST = IPv4Address("169.254.1.0"), IPv4Address("169.254.254.255")
GIVEN = IPv4Address("169.254.20.20")
METADATA = IPv4Address("169.254.169.254")

_random = random.Random(3927)
MACS = ["02:" + _random.randbytes(5).hex(":") for _ in range(16)]
"""Random, but the same in every run."""


def candidates(frames: Sequence[ArpFrame]) -> list[IPv4Address]:
    """Return the candidates in the order in which they were first probed."""
    return list(dict.fromkeys(frame.tpa for frame in frames))


def tried(case: Case, machine: Machine, number: int, timeout: float = 60) -> list[IPv4Address]:
    """Return so many candidates of one start: all but the last are in use by a neighbour."""
    sniffer = machine.port.sniffer
    since = sniffer.mark()
    denied: set[IPv4Address] = set()
    neighbour = machine.port.neighbour()

    def deny(_: object, frame: ArpFrame) -> list[bytes]:
        if frame.is_probe and (len(denied) < number - 1 or frame.tpa in denied):
            denied.add(frame.tpa)
            return list(rule(neighbour, frame))
        return []

    rule = answers_probes()
    neighbour.become(deny)
    device = machine.start()
    try:
        case.until(
            lambda: len(candidates(sniffer.probes(since=since))) >= number,
            f"not {number} candidates, though all before were in use",
            timeout,
        )
    finally:
        if device.running:
            device.kill()
        neighbour.become()
    return candidates(sniffer.probes(since=since))[:number]


def side_by_side(work: Callable[[str], None], values: Sequence[str], number: int) -> None:
    """Each value once, so many at the same time; the first that fell short decides."""
    left = list(values)
    wrong: list[FallsShort] = []

    def go() -> None:
        while left and not wrong:
            try:
                work(left.pop())
            except FallsShort as error:
                wrong.append(error)

    threads = [threading.Thread(target=go) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def distance(values: Sequence[IPv4Address]) -> float:
    """Return the distance of Kolmogorov and Smirnov from the uniform distribution over the range."""
    span = int(LAST) - int(FIRST) + 1
    places = sorted((int(value) - int(FIRST)) / span for value in values)
    number = len(places)
    return max(
        max((index + 1) / number - place, place - index / number)
        for index, place in enumerate(places)
    )


@pytest.mark.row("sel-range", seconds=75)
def test_candidates_are_uniform(case: Case) -> None:
    number = MAX_CONFLICTS - 1
    lists: list[list[IPv4Address]] = []

    def work(mac: str) -> None:
        lists.append(tried(case, case.machine(mac=mac), number))

    side_by_side(work, MACS, 4)
    every = [address for one in lists for address in one]
    outside = [address for address in every if not FIRST <= address <= LAST]
    case.require(not outside, f"outside of the range: {listed(outside[:5])}")
    # What a uniform choice exceeds once in 10,000 runs; the MACs are always the same ones.
    for what, values in (
        ("first candidates", [one[0] for one in lists]),
        ("later candidates", [address for one in lists for address in one[1:]]),
    ):
        limit = math.sqrt(-0.5 * math.log(1e-4 / 2) / len(values))
        far = distance(values)
        if far > limit:
            case.short(
                f"{what} of {len(lists)} MACs lie between {min(values)} and {max(values)},"
                f" not uniform (distance {far:.2f}, expected below {limit:.2f})"
            )
    case.holds(f"{len(every)} candidates of {len(lists)} MACs")


@pytest.mark.row("sel-seed", seconds=30, must=False)
def test_same_mac_same_sequence(case: Case) -> None:
    machine = case.machine(mac=MACS[0])
    first = tried(case, machine, 3)
    machine.forget()
    second = tried(case, machine, 3)
    case.require(first[0] == second[0], f"one MAC, two first candidates: {first[0]}, {second[0]}")
    if first != second:
        case.short(
            f"one MAC, the first candidate is always {first[0]}, but what follows differs:"
            f" {listed(first[1:])} and then {listed(second[1:])}"
        )
    case.holds(f"twice {listed(first)}")


@pytest.mark.row("sel-seed", seconds=20)
def test_other_mac_other_sequence(case: Case) -> None:
    one = tried(case, case.machine(mac=MACS[1]), 3)
    other = tried(case, case.machine(mac=MACS[2]), 3)
    case.require(one != other, f"two MACs, one sequence: {listed(one)}")
    case.holds("two MACs, two sequences")


@pytest.mark.row("sel-ip", seconds=12)
def test_given_candidate(case: Case) -> None:
    case.needs("candidate")
    machine = case.machine()
    machine.port.neighbour(answers_probes(first=1))
    machine.start(candidate=GIVEN)
    first = case.probe(machine).tpa
    case.require(first == GIVEN, f"told {GIVEN}, probes {first}")
    other = case.probe(machine, other_than=GIVEN).tpa
    case.holds(f"{GIVEN} as told, then {other}")


@pytest.mark.row("sel-memory", seconds=25)
def test_remembers_its_address(case: Case) -> None:
    machine = case.machine(mac=MACS[3])
    neighbour = machine.port.neighbour(answers_probes(first=1))
    held = case.settled(machine)
    neighbour.become()
    taken = machine.port.sniffer.probes()[0].tpa
    case.require(held != taken, f"{taken} was in use, and was claimed")
    machine.devices[-1].stop(20)
    # An address that a program leaves on the interface at its end is not remembered.
    machine.host.ip(f"addr flush dev {machine.port.name}")
    since = machine.port.sniffer.mark()
    again = machine.start()
    address = case.claimed(machine, since=since, device=again)
    probes = machine.port.sniffer.probes(since=since)
    first = probes[0].tpa if probes else address
    case.require(first == held, f"held {held} at the end, starts again with {first}")
    case.holds(f"{held} after a restart, though {taken} comes first with this MAC")


@pytest.mark.row("sel-metadata", seconds=12)
def test_not_the_metadata_address(case: Case) -> None:
    """No bounded time shows that it is never picked at random, so the program gets it as its first candidate."""
    case.needs("candidate")
    machine = case.machine()
    device = machine.start(candidate=METADATA)
    case.until(
        lambda: not device.running or machine.port.sniffer.probes(),
        "neither a probe nor an end",
    )
    probes = machine.port.sniffer.probes()
    case.require(not probes or probes[0].tpa != METADATA, f"told {METADATA}, it probes it")
    case.holds("refused" if not device.running else f"took {probes[0].tpa} instead")

"""Scale: thousands of hosts on one virtual link, all switched on at once, until each has an address of its own.

The hosts are autoip's negotiation with the times of the RFC, on the virtual link of the unit tests; the kernel of each
answers for its address, and asks for a neighbour's every ten seconds. The clock is virtual, so the times in the results
are those of the protocol, whatever the machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from random import Random
from typing import Any

from autoip.core.arp import NO_HARDWARE, ArpPacket, Operation
from tests.unit.virtual_link import Host, VirtualLink

TALK = 10.0
"""Seconds between two frames of a host's kernel."""
CUT = 30.0
"""Seconds for which the link is in two parts at the beginning."""
LONGEST = 6 * 3600.0
"""Seconds of the virtual clock after which the last host must have its address."""
SHARES = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.999, 1.0)
"""Of the hosts: the points of a curve."""


@dataclass(frozen=True)
class Case:
    """A link.

    Attributes:
        hosts: how many are switched on at once.
        loss: which share of the frames does not arrive at a host.
        double: which share arrives twice.
        cut: whether the link is in two halves for the first CUT seconds.
    """

    hosts: int
    loss: float = 0.0
    double: float = 0.0
    cut: bool = False

    @property
    def part(self) -> str:
        """How it is named on the command line."""
        return f"{self.hosts}" + "-bad" * (self.loss > 0) + "-cut" * self.cut

    @property
    def name(self) -> str:
        words = [f"{self.hosts:,} hosts"]
        if self.loss or self.double:
            words.append(f"{self.loss:.0%} lost, {self.double:.0%} twice")
        if self.cut:
            words.append(f"two halves for {CUT:.0f} s")
        return ", ".join(words)


CASES = (
    *map(Case, (2, 10, 100, 1_000, 10_000)),
    Case(1_000, loss=0.1, double=0.1),
    Case(1_000, cut=True),
    Case(10_000, loss=0.1, double=0.1),
    Case(10_000, cut=True),
    *map(Case, (20_000, 40_000, 60_000)),
)
"""The costly ones last."""
NAMES = tuple(case.part for case in CASES)


class CountedLink(VirtualLink):
    """A virtual link that counts what each host sends, and has the kernel of each host speak."""

    def __init__(self, case: Case, seed: int) -> None:
        super().__init__(seed, loss=case.loss, double=case.double)
        self.record = False
        self.cut = case.cut
        self.begin = self.now
        self.sent: Counter[Host] = Counter()
        self.pauses = Random(seed)
        self.talking = case.cut or case.loss > 0
        """On a sound link nobody has to speak for all to be well."""

    def send(self, sender: Host, packet: ArpPacket) -> None:
        self.sent[sender] += 1
        super().send(sender, packet)

    def switch_on(self, hosts: int) -> None:
        """All at once."""
        for number in range(hosts):
            host = self.add(number + 1)
            host.side = number % 2
            self.call_at(self.now, host.link_up)
            if self.talking:
                self.call_at(self.now + self.pauses.uniform(0, TALK), partial(self.talk, host))

    def talk(self, host: Host) -> None:
        """The host's kernel asks for a neighbour, from its address; and again later. Not counted."""
        if (address := host.on_interface) is not None:
            target = IPv4Address("169.254.255.254")
            super().send(host, ArpPacket(Operation.REQUEST, host.mac, address, NO_HARDWARE, target))
        self.call_at(self.now + TALK, partial(self.talk, host))

    def settled(self) -> bool:
        """Whether each host has an address, and no two the same."""
        if any(host.on_interface is None for host in self.hosts):
            return False
        return len({host.on_interface for host in self.hosts}) == len(self.hosts)


def measure(case: Case, seed: int) -> dict[str, Any]:
    """Switch the hosts on and wait until all have different addresses. Raises AssertionError if they never have."""
    link = CountedLink(case, seed)
    link.switch_on(case.hosts)
    if case.cut:
        link.run(CUT)
        link.cut = False
    while not link.settled():
        assert link.now - link.begin < LONGEST, f"{case.name}: not settled after {LONGEST} s"
        link.run(0.5)
    if link.talking:
        link.run(3 * TALK)  # all have spoken, and nobody objects
        assert link.settled(), f"{case.name}: two hosts have one address"
    # When each got the address that it has now.
    times = sorted(host.held[-1][1] - link.begin for host in link.hosts)
    curve = [(round(times[max(0, round(share * len(times)) - 1)], 2), share) for share in SHARES]
    again = sum(len(host.held) > 1 for host in link.hosts)
    assert again == 0 or link.talking, f"{case.name}: {again} lost an address on a sound link"
    return {
        "count": case.hosts,
        "unit": "hosts",
        "last": curve[-1][0],
        "most": curve[-3][0],
        "half": curve[SHARES.index(0.5)][0],
        "frames": round(link.sent.total() / case.hosts, 1),
        "frames_most": max(link.sent.values()),
        "lost_one": again,
        "curve": curve,
    }


def run(
    names: Sequence[str], seconds: float, seed: int, write: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The named cases, or as many as the time allows, in their order; what was measured, and what was found."""
    write(f"scale: {seconds:g} s; seed {seed}")
    rows: dict[str, dict[str, Any]] = {}
    findings: list[str] = []
    begin = time.monotonic()
    per_host = 0.0
    for case in CASES:
        if names and case.part not in names:
            continue
        left = seconds - (time.monotonic() - begin)
        if not names and per_host * case.hosts > left:
            write(f"  {case.name}: not tried, it would take {per_host * case.hosts:.0f} s")
            continue
        since = time.monotonic()
        try:
            row = rows[case.name] = measure(case, seed)
        except AssertionError as problem:
            findings.append(f"scale, seed {seed}: {problem}")
            write(f"  {case.name}: FOUND, see below")
            continue
        if case.hosts >= 1_000 and not case.cut:
            per_host = max(per_host, (time.monotonic() - since) / case.hosts)
        write(
            f"  {case.name}: all different after {row['last']:.1f} s, 99 % after {row['most']:.1f} s;"
            f" {row['frames']} frames a host, {row['frames_most']} at most"
        )
    return rows, findings

"""A mixed party: twenty real programs of five kinds on one bridge, which all want one address first, started at once.

Whoever can be told a first candidate is told that of the first dhcpcd, which follows from its hardware address. In each
round all start at once; each must get an address, no two the same, and keep it; then all end. Every other round they
have forgotten which address they had.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from conformance.device import Machine
from lab import LabError, Switch
from lab.daemon import REPOSITORY
from lab.peers import Dhcpcd
from tests.netns.helpers import wait_until

GUESTS = {"autoip": 7, "avahi-autoipd": 4, "dhcpcd": 4, "networkd": 3, "networkmanager": 2}
"""How many of each; the names are those of the conformance suite's adapters."""
TOLD = ("autoip", "avahi-autoipd", "networkd")
"""Who can be told a first candidate."""
PATIENCE = 120.0
"""Seconds for all to have an address. Some begin anew with each conflict, after a pause of their own."""
QUIET = 10.0
"""Seconds for which all have to keep it."""
NAMES: tuple[str, ...] = ()


@dataclass
class Guest:
    """A host with one of the programs."""

    program: str
    machine: Machine
    candidate: IPv4Address | None

    def address(self) -> IPv4Address | None:
        """What it holds; None if it holds none, or more than one."""
        held = self.machine.link_local()
        return held[0] if len(held) == 1 else None

    def leave(self) -> None:
        """End it, and take off what it leaves by intention."""
        for device in self.machine.devices:
            if device.running:
                device.stop(20)
        self.machine.devices.clear()
        if self.program != "autoip":
            self.machine.host.ip("addr flush dev eth0 scope link")
            self.machine.host.ip("addr flush dev eth0 to 169.254.0.0/16")


@contextmanager
def invited() -> Iterator[list[Guest]]:
    """All guests on one bridge, none of them started."""
    first = "02:00:00:00:33:01"
    candidate = Dhcpcd.first_candidate(first)
    guests: list[Guest] = []
    with ExitStack() as stack:
        switch = stack.enter_context(Switch())
        for program, count in GUESTS.items():
            for number in range(count):
                mac = (
                    first
                    if (program, number) == ("dhcpcd", 0)
                    else f"02:00:00:00:44:{len(guests):02x}"
                )
                command = f"conformance/adapters/{program} {{netns}} {{ifname}}"
                machine = Machine(switch, command, REPOSITORY, mac=mac, plugged=True)
                stack.callback(machine.close)
                guests.append(Guest(program, machine, candidate if program in TOLD else None))
        yield guests


def celebrate(guests: Sequence[Guest], *, forget: bool) -> float:
    """One round; after how many seconds all had different addresses. Raises LabError."""
    if forget:
        for guest in guests:
            guest.machine.forget()
    devices = [(guest, guest.machine.device(candidate=guest.candidate)) for guest in guests]
    begin = time.monotonic()
    for _, device in devices:
        device.start()

    def different() -> bool:
        held = [guest.address() for guest in guests]
        return None not in held and len(set(held)) == len(guests)

    wait_until(different, "all different", PATIENCE)
    took = time.monotonic() - begin
    before = [guest.address() for guest in guests]
    time.sleep(QUIET)
    after = [guest.address() for guest in guests]
    for guest, had, has in zip(guests, before, after, strict=True):
        if had != has:
            raise LabError(f"{guest.program} had {had} and now has {has}")
    for guest in guests:
        guest.leave()
        if guest.program == "autoip" and guest.machine.link_local():
            raise LabError(f"autoip left {guest.machine.link_local()}")
    return took


def run(
    names: Sequence[str], seconds: float, seed: int, write: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rounds until the time is over, one at least; what was tried, and what was found."""
    write(f"party: {', '.join(f'{count} {name}' for name, count in GUESTS.items())}; {seconds:g} s")
    end = time.monotonic() + seconds
    took: list[float] = []
    with invited() as guests:
        while not took or time.monotonic() < end:
            try:
                took.append(celebrate(guests, forget=len(took) % 2 == 0))
            except AssertionError:
                held = Counter(str(guest.address()) for guest in guests)
                state = "\n".join(f"{guest.program}: {guest.address()}" for guest in guests)
                return {}, [
                    f"party, round {len(took) + 1}\n{traceback.format_exc(-3)}{state}\n{held}"
                ]
            write(f"  round {len(took)}: all different after {took[-1]:.1f} s, none lost")
    row = {
        "count": len(took),
        "unit": "rounds",
        "slowest": round(max(took), 1),
        "guests": GUESTS,
    }
    return {"rounds": row}, []

"""The defence of an address that another host claims (RFC 3927, 2.5)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from lab import ArpFrame, LabError, frames

from .case import OTHER, PATIENCE, RIVAL, ROUTABLE, THIRD, Case, after, connection, seconds
from .device import Machine
from .rows import DEFEND_INTERVAL

GIVEN_UP = 5.0
"""Seconds after which an address that is given up at once is gone, on a busy machine."""
APART = DEFEND_INTERVAL + 1.5


def defended(
    case: Case, machine: Machine, address: IPv4Address, sent: int, timeout: float = 5
) -> bool:
    """Return within the time: True if an announcement answers the conflict, False if the address is given up."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if after(machine.port.sniffer.announcements(address), sent):
            return True
        if address not in machine.link_local():
            return False
        time.sleep(0.02)
    raise case.short(f"a conflict for {address} is not noticed", since=sent - 1_000_000)


def still_held(machine: Machine, address: IPv4Address, seconds: float) -> bool:
    time.sleep(seconds)
    return machine.link_local() == [address]


CONFLICTS: dict[str, Callable[[str, IPv4Address], bytes]] = {
    "a request": lambda mac, a: frames.conflict_request(RIVAL, a),
    "a reply by broadcast": lambda mac, a: frames.conflict_reply(RIVAL, a),
    "a reply by unicast": lambda mac, a: frames.conflict_reply(RIVAL, a, mac, OTHER, mac),
    "an announcement": lambda mac, a: frames.announcement(RIVAL, a),
}


@pytest.mark.parametrize("what", CONFLICTS)
@pytest.mark.row("def-detect", seconds=30)
def test_conflict_is_noticed(case: Case, what: str) -> None:
    machine = case.machine()
    address = case.settled(machine)
    if what == "a request":  # an event that is missed now cannot be found later
        time.sleep(12)
    sent = machine.port.send_stamped(CONFLICTS[what](machine.port.mac, address))
    how = "defended" if defended(case, machine, address, sent) else "given up"
    case.holds(f"{what}: {how}")


@pytest.mark.row("def-once", seconds=20)
def test_one_defence(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    sent = case.conflict(machine.port, address)
    if not defended(case, machine, address, sent):
        case.short(f"gives {address} up at the first conflict, as 2.5(a) allows", since=sent - 1)
    held = still_held(machine, address, 3)
    case.require(held, f"{address} is announced, and given up nevertheless", since=sent - 1)
    sent_since = [f for f in after(machine.port.sniffer.arp(), sent) if f.spa == address]
    case.require(
        len(sent_since) == 1 and sent_since[0].is_announcement,
        f"{len(sent_since)} frames, not one defence",
    )
    case.holds(f"one announcement after {(sent_since[0].ns - sent) / 1e6:.1f} ms")


@pytest.mark.parametrize("apart", [2, 6])
@pytest.mark.row("def-yield", seconds=30)
def test_second_conflict(case: Case, apart: int) -> None:
    """B I.5 has two replies, 6 s apart."""
    machine = case.machine()
    sniffer = machine.port.sniffer
    address = case.settled(machine)
    first = case.conflict(machine.port, address, reply=True)
    second = None
    if defended(case, machine, address, first):
        time.sleep(apart)
        case.require(
            machine.link_local() == [address], "given up between the conflicts", since=first - 1
        )
        second = case.conflict(machine.port, address, reply=True)
    sent = second or first
    case.until(
        lambda: address not in machine.link_local(),
        f"{address} is kept after a second conflict {apart} s later",
        10,
    )
    gone = machine.monitor.wait_for(
        lambda added, entry: not added and entry.address == address, PATIENCE
    )[0]
    pause = (gone - sent) / 1e9
    case.require(pause < GIVEN_UP, f"{address} is given up {seconds(pause)} after the conflict")
    used = [f for f in after(sniffer.arp(), max(sent, gone) + 200_000_000) if f.spa == address]
    case.require(not used, f"{address} was given up, but is used: {used[:1]}", since=first - 1)
    case.until(
        lambda: after(sniffer.probes(), sent), f"{address} is given up, and no other one is tried"
    )
    if after(sniffer.probes(), sent)[0].tpa == address:
        case.quiet(machine)  # the consequence belongs to the proof
        again = "claimed" if machine.link_local() == [address] else "tried"
        case.short(f"{address} is given up, then the same one is {again} again", since=first - 1)
    case.claimed(machine, other_than=address)
    what = "the first" if second is None else f"the second, {apart} s later"
    case.holds(f"given up {seconds(pause)} after {what}")


@pytest.mark.row("def-again", seconds=55)
def test_conflicts_far_apart(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    for number in ("first", "second", "third"):
        sent = case.conflict(machine.port, address)
        if not defended(case, machine, address, sent):
            case.short(f"gives {address} up at the {number} of conflicts {APART} s apart")
        held = still_held(machine, address, APART)
        case.require(held, f"{address} is given up after the {number} of conflicts {APART} s apart")
    case.holds(f"three defences, {APART} s apart")


@pytest.mark.row("def-abandon", seconds=22)
def test_gives_up_at_once(case: Case) -> None:
    option = case.needs("abandon")
    machine = case.machine()
    address = case.settled(machine, options=[option] if option else [])
    sent = case.conflict(machine.port, address)
    case.until(lambda: address not in machine.link_local(), f"{address} is kept", 10)
    announced = after(machine.port.sniffer.announcements(address), sent)
    case.require(not announced, f"{address} is defended", since=sent - 1)
    case.claimed(machine, other_than=address)
    reason = own_reason(case, "abandon")
    case.holds(f"given up, another claimed{reason}")


def own_reason(case: Case, capability: str) -> str:
    """Return why the case needed no option."""
    reason = case.about.always.get(capability)
    return f" ({reason})" if reason else ""


@pytest.mark.row("def-reset", seconds=25)
def test_connections_are_reset(case: Case) -> None:
    machine = case.machine(plugged=True)
    peer = case.neighbour_host(f"{OTHER}/16")
    address = case.settled(machine)
    with connection(machine, address, peer, str(OTHER)) as (ours, theirs):
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        sent = case.conflict(machine.port, address)
        if defended(case, machine, address, sent):
            time.sleep(1)
            sent = case.conflict(machine.port, address)
        case.until(lambda: address not in machine.link_local(), f"{address} is kept", 10)
        theirs.settimeout(5)
        try:
            theirs.recv(1)
        except ConnectionResetError:
            case.holds("the peer's end was reset")
        except TimeoutError:
            case.short(
                f"{address} is given up, the peer of a connection hears nothing", since=sent - 1
            )
        else:
            case.short("the peer's end was closed, not reset", since=sent - 1)


def _unicast(seen: list[ArpFrame]) -> list[ArpFrame]:
    return [f for f in seen if f.spa.is_link_local and not f.broadcast]


@pytest.mark.row("def-broadcast", seconds=15)
def test_replies_are_broadcast(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    since = machine.port.sniffer.mark()
    sent = case.ask(machine.port, address)
    answer = case.answered(machine, address, since)
    case.require(answer, f"{address} is held, but nobody answers an ARP request for it")
    time.sleep(0.5)
    unicast = _unicast(machine.port.sniffer.arp(since))
    if unicast:
        case.short(f"an ARP request is answered by unicast: {unicast[0]}", since=sent - 1)
    case.holds("an ARP request is answered by broadcast")


@pytest.mark.row("def-broadcast", seconds=30)
def test_requests_are_broadcast(case: Case) -> None:
    """The kernel asks a neighbour in its cache again, by unicast."""
    machine = case.machine()
    name = machine.port.name
    # The kernel's times for this, shortened: they set when it asks, not how.
    machine.host.run(
        *("sysctl", "-q", "-w", f"net.ipv4.neigh.{name}.base_reachable_time_ms=1000"),
        f"net.ipv4.neigh.{name}.delay_first_probe_time=1",
    )
    address = case.settled(machine)
    answers = machine.port.neighbour(_has(OTHER), mac=THIRD)
    since = machine.port.sniffer.mark()
    asked = 0
    until = time.monotonic() + 15
    while asked < 2 and time.monotonic() < until:
        with contextlib.suppress(OSError):
            machine.host.send_udp(OTHER)
        time.sleep(0.3)
        requests = [f for f in machine.port.sniffer.arp(since) if f.op == frames.REQUEST]
        asked = len([f for f in requests if f.tpa == OTHER and f.spa == address])
    case.require(asked >= 2, f"the kernel asked {asked} times for a neighbour")
    unicast = _unicast(machine.port.sniffer.arp(since))
    if unicast:
        case.short(f"a neighbour is asked again by unicast: {unicast[0]}")
    assert answers.answered
    case.holds("a known neighbour is asked again by broadcast")


def _has(address: IPv4Address) -> Callable[[object, ArpFrame], list[bytes]]:
    """A neighbour with an address."""

    def rule(_: object, frame: ArpFrame) -> list[bytes]:
        if frame.op == frames.REQUEST and frame.tpa == address and frame.spa != address:
            return [frames.answer(THIRD, frame)]
        return []

    return rule


@pytest.mark.row("def-probed", seconds=18)
def test_probe_of_another_host(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    since = machine.port.sniffer.mark()
    sent = machine.port.send_stamped(frames.probe(RIVAL, address))
    answer = case.answered(machine, address, since)
    case.require(answer, f"another host's probe for {address} is not answered", since=sent - 1)
    held = still_held(machine, address, 3)
    case.require(held, f"another host's probe for {address}: given up", since=sent - 1)
    assert answer is not None
    case.holds(f"answered after {(answer.ns - sent) / 1e6:.1f} ms, kept")


@pytest.mark.row("co-dhcp", seconds=20)
def test_routable_replies_stay_unicast(case: Case) -> None:
    """What RFC 3927 asks for link-local addresses is not done to the others."""
    machine = case.machine()
    case.settled(machine)
    machine.host.ip(f"addr add {ROUTABLE} brd + dev {machine.port.name}")
    time.sleep(2)
    since = machine.port.sniffer.mark()
    case.ask(machine.port, ROUTABLE.ip, spa=IPv4Address("10.9.8.77"))
    try:
        answer = machine.port.sniffer.wait_for(
            lambda f: f.op == frames.REPLY and f.spa == ROUTABLE.ip, 5, since=since
        )
    except LabError:
        case.short(f"{ROUTABLE.ip} does not answer an ARP request any more")
    case.require(not answer.broadcast, "the routable address is answered for by broadcast as well")
    case.holds("ARP of the routable address is unicast")

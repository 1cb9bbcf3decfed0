"""The interface: it comes and goes, and so does the program."""

from __future__ import annotations

import json
import time
from ipaddress import IPv4Address

import pytest

from lab import answers_probes, frames
from lab.rtnl import Address

from .case import PATIENCE, RIVAL, ROUTABLE, Case, after, listed
from .device import SLOW_START, Machine
from .rows import PROBE_NUM
from .test_defence import defended
from .verdict import NotApplicable

LINK = 253
"""The scope `link` in the kernel's numbers."""


def entry(machine: Machine, address: IPv4Address) -> Address:
    [found] = [e for e in machine.host.addresses(machine.port.name) if e.address == address]
    return found


@pytest.mark.row("if-alias", seconds=15)
def test_the_address(case: Case) -> None:
    machine = case.machine()
    held = entry(machine, case.settled(machine))
    wrong = []
    if held.prefixlen != 16:
        wrong.append(f"/{held.prefixlen}")
    if held.broadcast != IPv4Address("169.254.255.255"):
        wrong.append(f"broadcast {held.broadcast}")
    if held.scope != LINK:
        wrong.append(f"scope {'global' if held.scope == 0 else held.scope}")
    case.require(not wrong, f"{held.address} has {listed(wrong)}")
    case.holds("/16, broadcast 169.254.255.255, scope link")


@pytest.mark.row("if-alias", seconds=20)
def test_only_its_own_is_removed(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    machine.host.ip(f"addr add {ROUTABLE} brd + dev {machine.port.name}")
    time.sleep(2)
    machine.devices[-1].stop(20)
    time.sleep(0.5)
    left = [str(e.address) for e in machine.host.addresses(machine.port.name)]
    case.require(str(ROUTABLE.ip) in left, f"on stop it takes {ROUTABLE} of somebody else away")
    case.holds(f"another address survives the end of {address}")


@pytest.mark.row("if-wait", seconds=20)
def test_interface_is_down(case: Case) -> None:
    machine = case.machine(up=False)
    device = machine.start()
    time.sleep(4)
    case.require(device.running, f"ends with status {device.status} while the interface is down")
    flags = json.loads(machine.host.ip(f"-j link show {machine.port.name}"))[0]["flags"]
    machine.port.up()
    address = case.claimed(machine, device=device)
    probes = case.probes(machine, address)
    case.require(len(probes) == PROBE_NUM, f"{len(probes)} probes after the interface was up")
    case.holds("sets the interface up itself" if "UP" in flags else "down: waited for")


@pytest.mark.row("if-wait", seconds=20)
def test_no_carrier(case: Case) -> None:
    machine = case.machine()
    machine.port.carrier(False)
    device = machine.start()
    time.sleep(4)
    case.require(device.running, f"ends with status {device.status} without carrier")
    case.require(not machine.link_local(), "an address without carrier")
    machine.port.carrier(True)
    address = case.claimed(machine, device=device)
    probes = case.probes(machine, address)
    if len(probes) != PROBE_NUM:
        case.short(f"without carrier it probes into the void: {len(probes)} probes reach the link")
    case.holds("no carrier: waited for")


@pytest.mark.row("if-wait", seconds=20)
def test_no_interface(case: Case) -> None:
    machine = case.machine()
    machine.port.delete()
    device = machine.start()
    time.sleep(4)
    case.require(
        device.running, f"ends with status {device.status} when there is no such interface"
    )
    machine.port.create()
    case.claimed(machine, device=device)
    case.holds("missing: waited for")


@pytest.mark.row("if-gone", seconds=25)
def test_interface_comes_back(case: Case) -> None:
    machine = case.machine()
    case.settled(machine)
    device = machine.devices[-1]
    machine.port.delete()
    time.sleep(2)
    case.require(device.running, f"ends with status {device.status} when the interface goes away")
    since = machine.port.sniffer.mark()
    machine.port.create()
    address = case.claimed(machine, since=since, device=device)
    probes = case.probes(machine, address, since)
    case.require(len(probes) == PROBE_NUM, f"{len(probes)} probes when the interface is back")
    case.holds("3 probes when the interface is back")


def _without_carrier(machine: Machine, seconds: float = 3) -> int:
    """Pull the cable for so long; return the mark from which it is back."""
    machine.port.carrier(False)
    time.sleep(seconds)
    since = machine.port.sniffer.mark()
    machine.port.carrier(True)
    return since


@pytest.mark.row("if-carrier", seconds=35)
def test_carrier_returns(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    since = _without_carrier(machine)
    case.ask(machine.port, address)  # may not be answered before the claim is over
    case.probed_again(machine, address, since, "carrier back after 3 s")
    again = case.claimed(machine, since=since)
    case.require(again == address, f"had {address}, claims {again} though it is free")
    case.holds(f"{PROBE_NUM} probes for the former address before it is used")


@pytest.mark.row("if-carrier", seconds=40)
def test_carrier_returns_on_another_link(case: Case) -> None:
    """B I.6: the cable is changed, and the first probe denied."""
    machine = case.machine()
    address = case.settled(machine)
    machine.port.neighbour(answers_probes(addresses=[address]))
    since = _without_carrier(machine)
    other = case.claimed(machine, since=since, other_than=address, timeout=PATIENCE)
    held = machine.link_local()
    case.require(held == [other], f"it has {listed(held)} after {address} was denied")
    case.holds("the former address in use there: another one")


@pytest.mark.row("if-mac", seconds=25)
def test_another_mac(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    since = machine.port.sniffer.mark()
    machine.port.set_mac("02:00:00:00:77:01")
    probes = case.wait(
        machine,
        lambda f: f.is_probe and f.sha == machine.port.mac,
        PROBE_NUM,
        f"{address} is not probed again with the new hardware address",
        since=since,
    )
    tried = probes[-1].tpa
    case.until(
        lambda: after(machine.port.sniffer.announcements(tried), probes[-1].ns),
        f"{tried} is probed, but not announced",
    )
    announced = after(machine.port.sniffer.announcements(tried), probes[-1].ns)
    case.require(
        announced[0].sha == machine.port.mac, f"{tried} is announced with the old hardware address"
    )
    which = "the same address" if tried == address else "another address"
    case.holds(f"{PROBE_NUM} probes with the new one for {which}")


@pytest.mark.row("if-removed", seconds=25)
def test_address_is_deleted(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    since = machine.port.sniffer.mark()
    machine.host.ip(f"addr del {address}/16 dev {machine.port.name}")
    case.until(
        lambda: any(
            not added and entry.address == address for _, added, entry in machine.monitor.events()
        ),
        f"{address} cannot be deleted",
    )
    case.until(machine.link_local, f"{address}, deleted by hand, does not come back")
    number = len(machine.port.sniffer.probes(since=since))
    case.quiet(machine, since=since)
    case.require(machine.link_local(), f"{address}, deleted by hand, comes back and goes again")
    case.holds(f"back, with {number or 'no'} new probes")


@pytest.mark.row("if-resume", seconds=0)
def test_resume(case: Case) -> None:
    raise NotApplicable("no test can send the machine to sleep; see if-carrier")


def _configuration(machine: Machine) -> list[str]:
    """Return addresses, routes and rules, without the numbers that the kernel counts down."""
    name = machine.port.name
    shown = [machine.host.ip(f"-4 addr show dev {name}"), machine.host.ip("rule")]
    shown += [machine.host.ip("route show table all"), machine.host.run("tc", "qdisc")]
    lines = [line.strip() for text in shown for line in text.splitlines()]
    return [
        line for line in lines if "lft" not in line and "qlen" not in line and " lo " not in line
    ]


@pytest.mark.row("if-stop", seconds=22)
def test_stop(case: Case) -> None:
    machine = case.machine()
    before = _configuration(machine)
    address = case.settled(machine)
    status = machine.devices[-1].stop(30)
    time.sleep(1)
    left = [line for line in _configuration(machine) if line not in before]
    case.require(not left, f"{address} was held; after stop there is: {listed(left)}")
    case.holds(f"nothing left, exit status {status}")


@pytest.mark.row("if-one", seconds=25)
def test_second_instance(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    first = machine.devices[-1]
    since = machine.port.sniffer.mark()
    second = machine.start()
    begun = time.monotonic()
    while second.running and (passed := time.monotonic() - begun) < PATIENCE:
        # One that sends something has started, however busy the machine is.
        if passed > 10 and machine.port.sniffer.arp(since):
            break
        time.sleep(0.05)
    sent = machine.port.sniffer.arp(since)
    if second.running:
        case.short(
            f"a second instance runs beside the first: {len(sent)} ARP frames, addresses"
            f" {listed(machine.link_local())}"
        )
    reason = f": {second.lines[-1].strip()}" if second.lines else ""
    case.require(second.status != 0, f"the second instance ends with status 0{reason}")
    case.require(first.running, "the second instance ends the first one")
    case.require(machine.link_local() == [address], f"{address} is gone")
    case.require(second.output, "the second instance ends without a word")
    telling = [line for line in second.lines if "running" in line or "runs" in line]
    case.holds(f"status {second.status}: {(telling or second.lines[-1:])[0].strip()}")


@pytest.mark.row("if-many", seconds=35)
def test_several_interfaces(case: Case) -> None:
    case.needs("several")
    machine = case.machine()
    second = case.switch.attach(machine.host, "eth1", mac="02:00:00:00:77:02")
    case.sniffers.append(second.sniffer)
    machine.start(interfaces=["eth0", "eth1"])
    one = case.claimed(machine)
    case.until(lambda: machine.host.link_local("eth1"), "eth1 has no address", SLOW_START)
    [other] = machine.host.link_local("eth1")
    case.require(one != other, f"both interfaces have {one}")
    case.quiet(machine)
    time.sleep(2)
    sent = second.send_stamped(frames.conflict_request(RIVAL, other))
    time.sleep(1)
    if other in machine.host.link_local("eth1"):
        sent = second.send_stamped(frames.conflict_request(RIVAL, other))
    case.until(
        lambda: after(second.sniffer.probes(), sent),
        "a conflict on eth1: nothing else is tried there",
    )
    case.require(machine.link_local() == [one], f"a conflict on eth1: eth0 loses {one}")
    answers = after(machine.port.sniffer.arp(), sent)
    case.require(not answers, "a conflict on eth1 makes it speak on eth0", since=sent - 1)
    case.holds("two interfaces, a conflict on one leaves the other alone")


@pytest.mark.row("if-carrier", seconds=20)
def test_defends_after_the_carrier(case: Case) -> None:
    """The claim after a change of link is a whole one: the address is defended again."""
    machine = case.machine()
    address = case.settled(machine)
    since = _without_carrier(machine)
    case.probed_again(machine, address, since, "carrier back after 3 s")
    again = case.claimed(machine, since=since)
    case.quiet(machine, since=since)
    sent = case.conflict(machine.port, again)
    how = "defended" if defended(case, machine, again, sent) else "given up"
    case.holds(f"a conflict afterwards: {how}")

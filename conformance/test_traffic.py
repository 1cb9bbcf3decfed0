"""Traffic beside, and without, a routable address (RFC 3927, 1.9, 2.6)."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface

import pytest

from lab import ArpFrame, Namespace, frames

from .case import OTHER, PATIENCE, ROUTABLE, ROUTER, Case, connection, listed
from .device import SLOW_START, Machine
from .test_defence import defended, own_reason

FAR = IPv4Address("17.2.3.4")
"""A host that is on the link, and whose address is of another network (B III.1)."""
SEVENTEEN = IPv4Interface("17.1.1.1/24")
"""A host of that network, for its link-local neighbours."""
ELSEWHERE = IPv4Address("198.51.100.7")
"""A host behind the router."""


def lease(
    machine: Machine, address: IPv4Interface = ROUTABLE, router: IPv4Address = ROUTER
) -> None:
    """Configure a lease, as a DHCP client does."""
    name = machine.port.name
    machine.host.ip(f"addr add {address} brd + dev {name} valid_lft 3600 preferred_lft 3600")
    machine.host.ip(f"route add default via {router} dev {name}")


def expire(machine: Machine, address: IPv4Interface = ROUTABLE) -> None:
    """End the lease, as a DHCP client does; the kernel takes the route away with the address."""
    machine.host.ip(f"addr del {address} dev {machine.port.name}")


def owns(*addresses: IPv4Address, mac: str) -> Callable[[object, ArpFrame], list[bytes]]:
    """Return a neighbour that answers for these addresses."""

    def rule(_: object, frame: ArpFrame) -> list[bytes]:
        if frame.op == frames.REQUEST and frame.tpa in addresses and frame.spa != frame.tpa:
            return [frames.answer(mac, frame)]
        return []

    return rule


def on_link(case: Case, machine: Machine, destination: IPv4Address, router: IPv4Address) -> None:
    """A datagram to the destination makes the machine ask the link for it, not for the router."""
    asked = case.asked_for(machine, destination, destination, router)
    if asked is None:
        case.short(f"to {destination}: it is not asked for on the link")
    if asked.tpa == router:
        case.short(f"to {destination}: by the router {router}")


@pytest.mark.parametrize(
    ("address", "router"), [(ROUTABLE, ROUTER), (SEVENTEEN, IPv4Address("17.1.1.254"))]
)
@pytest.mark.row("fwd-onlink", seconds=20)
def test_link_local_destination(case: Case, address: IPv4Interface, router: IPv4Address) -> None:
    """B III.2: a host at 17.1.1.1 with a link-local neighbour."""
    machine = case.machine()
    held = case.settled(machine)
    lease(machine, address, router)
    time.sleep(4)
    on_link(case, machine, OTHER, router)
    kept = "kept" if held in machine.link_local() else "released"
    case.holds(f"with {address} and a router, {held} {kept}: 169.254/16 is on the link")


@pytest.mark.row("fwd-onlink", seconds=12)
def test_route_without_an_address(case: Case) -> None:
    option = case.needs("route-only")
    machine = case.machine()
    lease(machine, SEVENTEEN, IPv4Address("17.1.1.254"))
    machine.start(options=[option])
    time.sleep(3)
    case.until(lambda: "169.254" in machine.host.ip("route show table all"), "no route 169.254/16")
    on_link(case, machine, OTHER, IPv4Address("17.1.1.254"))
    time.sleep(4)
    case.require(not machine.link_local(), "it claims an address all the same")
    case.require(not machine.port.sniffer.probes(), "it probes all the same")
    case.holds(f"{SEVENTEEN.ip} alone: 169.254/16 is on the link")


@pytest.mark.row("fwd-source", seconds=20)
def test_source_address(case: Case) -> None:
    machine = case.machine()
    case.settled(machine)
    lease(machine)
    time.sleep(4)
    for what, destination, asked in (
        ("on the link", IPv4Address("10.9.8.99"), IPv4Address("10.9.8.99")),
        ("behind the router", ELSEWHERE, ROUTER),
    ):
        request = case.asked_for(machine, destination, asked)
        case.require(request, f"a destination {what} is not asked for")
        assert request is not None
        case.require(request.spa == ROUTABLE.ip, f"to a destination {what} from {request.spa}")
    case.holds(f"from {ROUTABLE.ip}")


@pytest.mark.row("fwd-any", seconds=20)
def test_every_destination_is_on_the_link(case: Case) -> None:
    """B III.1: a neighbour at 17.2.3.4, which answers."""
    option = case.needs("default-route")
    machine = case.machine()
    address = case.settled(machine, options=[option] if option else [])
    neighbour = machine.port.neighbour(owns(FAR, mac="02:00:00:00:00:fe"))
    asked = case.asked_for(machine, FAR, FAR)
    case.require(asked, f"{FAR} is not asked for on the link")
    assert asked is not None
    case.require(asked.spa == address, f"{FAR} is asked for from {asked.spa}")
    case.until(
        lambda: any(
            f.from_host and f.ethertype == 0x0800 and f.destination == neighbour.mac
            for f in machine.port.sniffer.frames()
        ),
        f"no datagram reaches {FAR}",
    )
    case.holds(f"{FAR} is asked for{own_reason(case, 'default-route')}")


@pytest.mark.row("fwd-any", seconds=20, must=False)
def test_default_route_gives_way(case: Case) -> None:
    """The route of the link is for a host without any other: not beside the router's, whatever its metric."""
    option = case.needs("default-route")
    machine = case.machine()
    case.settled(machine, options=[option] if option else [])
    name = machine.port.name
    machine.host.ip(f"addr add {ROUTABLE} brd + dev {name}")
    machine.host.ip(f"route add default via {ROUTER} dev {name} metric 50000")

    def routes() -> list[str]:
        found = json.loads(machine.host.ip("-j route show default"))
        return [str(route.get("gateway", "on the link")) for route in found]

    case.until(
        lambda: routes() == [str(ROUTER)],
        "its default route stays beside the router's",
        10,
    )
    asked = case.asked_for(machine, ELSEWHERE, ELSEWHERE, ROUTER)
    case.require(asked and asked.tpa == ROUTER, f"{ELSEWHERE} does not go by the router")
    case.holds("withdrawn when the router's comes")


def _reached(machine: Machine, device: Namespace, address: IPv4Address) -> bool:
    """Whether a ping, and a datagram with its answer, reach the device from clients that are bound to nothing."""
    if " 0 received" in machine.host.run("ping", "-c", "1", "-W", "1", str(address), check=False):
        return False
    with (
        device.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as theirs,
        machine.host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as ours,
    ):
        theirs.bind((str(address), 3927))
        theirs.settimeout(2)
        ours.settimeout(2)
        try:
            ours.sendto(b"question", (str(address), 3927))
            content, client = theirs.recvfrom(100)
            theirs.sendto(content, client)
            return ours.recv(100) == b"question"
        except OSError:
            return False


@pytest.mark.row("fwd-several", seconds=25)
def test_neighbours_on_two_links(case: Case) -> None:
    """A device on each link, which is tried for 8 s. A program for one interface runs twice."""
    machine = case.machine(plugged=True)
    second = case.second_link(machine)
    devices = {
        "eth0": (OTHER, case.neighbour_host(f"{OTHER}/16")),
        "eth1": (OTHER + 1, case.neighbour_host(f"{OTHER + 1}/16", second.switch)),
    }
    together = "several" in {*case.about.can, *case.about.always}
    for names in [[*devices]] if together else [[name] for name in devices]:
        machine.start(interfaces=names)
    for name in devices:
        case.until(
            lambda name=name: machine.host.link_local(name),  # type: ignore[misc]
            f"{name} has no address",
            SLOW_START,
        )
    far = []
    for name, (address, device) in devices.items():
        end = time.monotonic() + 8
        while not _reached(machine, device, address):
            if time.monotonic() > end:
                far.append(f"{address} on {name}")
                break
    case.require(not far, f"not reached: {listed(far)}")
    case.holds("a device on each of two links is reached")


def _foreign(machine: Machine) -> list[str]:
    """Return the DHCP client's address and routes, without the numbers that the kernel counts down."""
    name = machine.port.name
    text = machine.host.ip(f"-j -4 addr show dev {name}")
    found = [entry for link in json.loads(text) for entry in link.get("addr_info", ())]
    seen = [
        " ".join(f"{key} {value}" for key, value in sorted(entry.items()) if "life" not in key)
        for entry in found
        if not str(entry["local"]).startswith("169.254.")
    ]
    lines = machine.host.ip("route show table all").splitlines()
    return seen + [" ".join(line.split()) for line in lines if "10.9.8." in line]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.row("co-dhcp", seconds=35)
def test_lease_is_left_alone(case: Case, when: str) -> None:
    """From before the program's start to after its end, or from after its claim on."""
    machine = case.machine()
    if when == "before":
        lease(machine)
        before = _foreign(machine)
        machine.start()
        end = time.monotonic() + 8
    else:
        case.settled(machine)
        lease(machine)
        before = _foreign(machine)
        end = time.monotonic() + 4
    while time.monotonic() < end:
        missing = [line for line in before if line not in _foreign(machine)]
        case.require(not missing, f"a lease from {when} its start: it takes away {listed(missing)}")
        time.sleep(0.25)
    if held := machine.link_local():
        sent = case.conflict(machine.port, held[0])
        if defended(case, machine, held[0], sent):
            case.conflict(machine.port, held[0])
        time.sleep(2)
    machine.devices[-1].stop(20)
    time.sleep(0.5)
    missing = [line for line in before if line not in _foreign(machine)]
    case.require(
        not missing, f"a lease from {when} its start: missing at the end {listed(missing)}"
    )
    case.holds(f"a lease from {when} its start is left alone")


def _underway(case: Case, options: list[str], seconds: float) -> tuple[Machine, IPv4Address, bool]:
    """A connection is underway when a lease comes, and lives on: machine, address, still held then."""
    machine = case.machine(plugged=True)
    peer = case.neighbour_host(f"{OTHER}/16")
    address = case.settled(machine, options=options)
    with connection(machine, address, peer, str(OTHER)) as (ours, theirs):
        ours.sendall(b"1")
        assert theirs.recv(1) == b"1"
        lease(machine)
        time.sleep(seconds)
        held = address in machine.link_local()
        try:
            theirs.sendall(b"2")
            ours.settimeout(5)
            alive = ours.recv(1) == b"2"
        except OSError:
            alive = False
        # Closed by a reset: a connection that lingers in the kernel could be taken for one underway.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        case.require(
            alive and held,
            f"a lease comes: {address} is {'kept' if held else 'taken away'}, a connection that"
            f" is underway is {'alive' if alive else 'dead'} {seconds:.0f} s later",
        )
    return machine, address, held


@pytest.mark.row("co-lease", seconds=30)
def test_lease_comes(case: Case) -> None:
    _, address, _ = _underway(case, [], 6)
    case.holds(f"{address} is kept, a connection lives on")


@pytest.mark.row("co-lease", seconds=35)
def test_lease_comes_to_a_fallback(case: Case) -> None:
    option = case.needs("fallback")
    machine, address, _ = _underway(case, [option] if option else [], 6)
    case.until(
        lambda: address not in machine.link_local(),
        "nothing is underway any more, but the address is not released",
        SLOW_START * 2,
    )
    case.holds("as a fallback: released when nothing is underway any more")


@pytest.mark.row("co-lost", seconds=35)
def test_lease_is_lost(case: Case) -> None:
    machine = case.machine()
    address = case.settled(machine)
    lease(machine)
    time.sleep(5)
    kept = address in machine.link_local()
    since = machine.port.sniffer.mark()
    expire(machine)
    case.until(machine.link_local, "the lease is lost, and there is no link-local address", 40)
    time.sleep(3)
    case.require(machine.link_local(), "the link-local address does not stay")
    if not kept:
        case.claimed(machine, since=since, timeout=PATIENCE)
    case.holds("kept all the time" if kept else "claimed again")

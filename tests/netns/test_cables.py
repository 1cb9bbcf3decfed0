"""Several links to 169.254/16 at once: programs that are bound to nothing reach each neighbour on its own link."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.core import arp
from autoip.kernel.neighbour_socket import KNOWN_MAX, NeighbourSocket
from lab import Daemon, LabError, Namespace, Port, Switch, crowd, frames
from lab.daemon import REPOSITORY
from lab.peers import AvahiAutoipd, AvahiDaemon, Dhcpcd
from tests.require import requires_program

from .commands import report, run
from .conftest import autoip_command
from .helpers import (
    ETHERTYPE_IPV4,
    NETNS,
    PATIENCE,
    configuration,
    for_every_user,
    wait_ready,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50")
TABLE = 169254000
X = IPv4Address("169.254.7.7")
STRANGER, OTHER = "02:00:00:00:00:99", "02:00:00:00:00:98"


def device_address(link: int, number: int = 1) -> IPv4Address:
    return IPv4Address(f"169.254.{10 + link}.{number}")


@dataclass
class Cable:
    """A link of the host, with a device at the other end."""

    port: Port
    device: Port

    @property
    def host(self) -> Namespace:
        return self.port.host


class Bench:
    """A host with several links, each with a device that has an address set by hand, and says nothing at first."""

    def __init__(self, stack: contextlib.ExitStack, links: int) -> None:
        self._stack = stack
        self.host = stack.enter_context(Namespace("host"))
        self.cables = [self._cable(number) for number in range(links)]
        for cable in self.cables:
            wait_ready(cable.port)
            wait_ready(cable.device)

    def _cable(self, number: int) -> Cable:
        switch = self._stack.enter_context(Switch())
        mac = f"02:00:00:00:{number + 1:02x}"
        port = switch.attach(self.host, f"eth{number}", mac=f"{mac}:01", plugged=True)
        far = self._stack.enter_context(Namespace("device"))
        device = switch.attach(far, "eth0", mac=f"{mac}:02", plugged=True)
        device.host.ip(f"addr add {device_address(number)}/16 dev eth0")
        return Cable(port, device)

    def start(self, *arguments: str, links: slice = slice(None)) -> Daemon:
        """Start one process for these links, and wait until all have an address, and it listens if they are several."""
        names = [cable.port.name for cable in self.cables[links]]
        command = [*autoip_command(), "run", *names, *FAST, *arguments]
        daemon = self._stack.enter_context(Daemon(self.host, names[0], command))
        daemon.start()
        self.settled(links)
        if len(names) > 1:
            # The address is on the interface before its neighbours are listened to.
            wait_until(lambda: listens(daemon) == len(names), "a socket for each link")
        return daemon

    def settled(self, links: slice = slice(None)) -> None:
        for cable in self.cables[links]:
            wait_until(lambda c=cable: self.host.link_local(c.port.name), cable.port.name)  # type: ignore[misc]

    def wait_routes(self, *links: int) -> None:
        """Wait until there are routes to the devices of these links, and no others."""
        wanted = {str(device_address(link)): f"eth{link}" for link in links}
        wait_until(lambda: self.routes() == wanted, f"the routes {wanted}")

    def routes(self) -> dict[str, str]:
        """The interface of each neighbour."""
        lines = self.host.run("ip", "route", "show", "table", str(TABLE), check=False).splitlines()
        return {words[0]: words[2] for words in map(str.split, lines)}

    def announce(self, link: int, address: IPv4Address, mac: str | None = None) -> None:
        cable = self.cables[link]
        cable.port.send(frames.announcement(mac or cable.device.mac, address))

    def learned(self, *links: int, address: IPv4Address | None = None) -> None:
        """Have the device of each link announce its address, or this one, until there is a route."""
        for link in links:
            wanted = address or device_address(link)

            def there(link: int = link, wanted: IPv4Address = wanted) -> bool:
                self.announce(link, wanted)
                time.sleep(0.05)
                return self.routes().get(str(wanted)) == f"eth{link}"

            wait_until(there, f"a route by eth{link}")

    def pings(self, address: IPv4Address, count: int = 1) -> bool:
        """Whether an echo request without a source gets an answer."""
        words = ("ping", "-c", str(count), "-i", "0.2", "-W", "5", str(address))
        return " 0 received" not in self.host.run(*words, check=False)


@pytest.fixture
def make_bench(stack: contextlib.ExitStack) -> Callable[[int], Bench]:
    return lambda links: Bench(stack, links)


def listens(daemon: Daemon) -> int:
    """How many packet sockets for all protocols the daemon has."""
    packets = daemon.namespace.run("cat", "/proc/net/packet").splitlines()[1:]
    found = {words[-1] for words in map(str.split, packets) if words[3] == "0003"}
    opened = set()
    for file in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed meanwhile
            opened.add(os.readlink(file))
    return sum(f"socket:[{inode}]" in opened for inode in found)


def listening(kind: int, address: IPv4Address | str) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    made.bind((str(address), 4711))
    return made


def client(kind: int, address: IPv4Address) -> socket.socket:
    """A connection from a program that is bound to nothing."""
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    try:
        made.connect((str(address), 4711))
    except OSError:
        made.close()
        raise
    return made


def talks(bench: Bench, link: int, address: IPv4Address | None = None) -> None:
    """Ping, UDP with an answer, and TCP, none of them bound to anything, reach the device."""
    address = address or device_address(link)
    device = bench.cables[link].device.host
    assert bench.pings(address)
    with (
        device.call(listening, socket.SOCK_DGRAM, address) as far,
        bench.host.call(client, socket.SOCK_DGRAM, address) as near,
    ):
        near.send(b"question")
        content, sender = far.recvfrom(100)
        far.sendto(b"answer", sender)
        assert (content, near.recv(100)) == (b"question", b"answer")
    with device.call(listening, socket.SOCK_STREAM, address) as far:
        far.listen()
        near = bench.host.call(client, socket.SOCK_STREAM, address)
        with near, far.accept()[0] as accepted:
            accepted.sendall(b"hello")
            assert near.recv(100) == b"hello"


@pytest.mark.parametrize("links", [2, 4])
def test_every_device_is_reached(make_bench: Callable[[int], Bench], links: int) -> None:
    bench = make_bench(links)
    before = configuration(bench.host)
    daemon = bench.start()
    for link in range(links):
        # Unknown at first: a second one arrives.
        wait_until(lambda link=link: bench.pings(device_address(link), 5), f"ping {link}")  # type: ignore[misc]
    bench.wait_routes(*range(links))  # that of the first link is not needed for a ping
    for link in range(links):
        talks(bench, link)
        name = f"eth{link}"
        [neighbour] = report(daemon, name)["neighbours"]
        mac = bench.cables[link].device.mac
        assert neighbour == {"address": str(device_address(link)), "mac": mac, "ambiguous": None}
        shown = run(daemon, f"route {device_address(link)}").out
        assert f"by {name} from {bench.host.link_local(name)[0]}: {mac}" in shown
    assert " 169.254.11.1 " in run(daemon, "status").out
    assert daemon.stop() == 0
    # The neighbours of the kernel go with the addresses.
    assert configuration(bench.host)[:3] == before[:3]


@requires_program(AvahiAutoipd.program, AvahiAutoipd.package)
@requires_program(Dhcpcd.program, Dhcpcd.package)
def test_devices_with_programs_of_others(
    make_bench: Callable[[int], Bench], stack: contextlib.ExitStack
) -> None:
    bench = make_bench(2)
    bench.start()  # before the devices announce what they have
    devices = []
    for cable, kind in zip(bench.cables, (Dhcpcd, AvahiAutoipd), strict=True):
        cable.device.host.ip("addr flush dev eth0")
        devices.append(stack.enter_context(kind(cable.device)))
        devices[-1].start()
    for link, device in enumerate(devices):
        address = device.wait_address(PATIENCE)
        wait_until(lambda a=address: str(a) in bench.routes(), device.label)  # type: ignore[misc]
        talks(bench, link, address)
    assert {*bench.routes().values()} == {"eth0", "eth1"}


@requires_program(AvahiDaemon.program, AvahiDaemon.package)
def test_a_connection_to_a_name(make_bench: Callable[[int], Bench]) -> None:
    """The answer of multicast DNS has not only shown the address, but also the link: the first connection is made."""
    bench = make_bench(2)
    bench.start()
    device = bench.cables[1].device
    own = [bench.host.link_local(cable.port.name)[0] for cable in bench.cables]
    with AvahiDaemon(device) as avahi:
        avahi.start()
        address = bench.host.call(resolved, f"{AvahiDaemon.NAME}.local", own)
        assert address == device_address(1)
        wait_until(lambda: bench.routes().get(str(address)) == "eth1", "the route")
        with device.host.call(listening, socket.SOCK_STREAM, address) as far:
            far.listen()
            with bench.host.call(client, socket.SOCK_STREAM, address) as near:
                assert near.getsockname()[0] == str(own[1])


def resolved(name: str, own: Sequence[IPv4Address]) -> IPv4Address:
    """Ask on each link by multicast DNS, as a resolver does, until a host answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = bytes.fromhex("000000000001000000000000") + labels + b"\0\0\1\0\1"
    with contextlib.ExitStack() as opened:
        asking = [
            opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in own
        ]
        for one, address in zip(asking, own, strict=True):
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address.packed)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for one in asking:
                one.sendto(question, ("224.0.0.251", 5353))
            for one in select.select(asking, [], [], 0.5)[0]:
                # The record of an address: type A, class, time to live, length, address.
                found = re.search(rb"\x00\x01\x00\x01.{4}\x00\x04(.{4})", one.recv(9000), re.DOTALL)
                if found:
                    return IPv4Address(found[1])
    raise LabError(f"nobody has the name {name}")


def test_a_crowd_on_each_link(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    bench.start()
    crowds = [crowd.answers(250, seed) for seed in (2, 3)]
    assert not crowds[0].keys() & crowds[1].keys()
    for cable, seed in zip(bench.cables, ("2", "3"), strict=True):
        command = [sys.executable, "-m", "lab.crowd", "eth0", "250", seed]
        running = cable.device.host.popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
    for link, hosts in enumerate(crowds):
        for address, mac in hosts.items():
            bench.announce(link, IPv4Address(address), mac.hex(":"))
    wait_until(lambda: len(bench.routes()) == 500, "routes")
    since = [cable.port.sniffer.mark() for cable in bench.cables]
    for address in [one for hosts in crowds for one in hosts]:
        bench.host.send_udp(IPv4Address(address))

    def received() -> list[set[str]]:
        return [
            {
                frame.destination
                for frame in cable.port.sniffer.frames(mark)
                if frame.from_host and frame.ethertype == ETHERTYPE_IPV4
            }
            for cable, mark in zip(bench.cables, since, strict=True)
        ]

    macs = [{mac.hex(":") for mac in hosts.values()} for hosts in crowds]
    wait_until(lambda: received() == macs, "a datagram for each device, on its link")


def test_a_connection_to_an_unknown_neighbour(make_bench: Callable[[int], Bench]) -> None:
    """Its source is that of the first link before anybody is asked: the first one fails, the next one does not."""
    bench = make_bench(2)
    bench.start()
    wanted = socket.SOCK_STREAM, device_address(1)
    with bench.cables[1].device.host.call(listening, *wanted) as far:
        far.listen()
        with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
            bench.host.call(client, *wanted)
        bench.wait_routes(1)
        with bench.host.call(client, *wanted) as near:
            assert near.getsockname()[0] == str(bench.host.link_local("eth1")[0])


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_source_filters(make_bench: Callable[[int], Bench], rp_filter: int) -> None:
    """What is for our address arrives in any case; what is for all, if strict, only from a sender with a route."""
    bench = make_bench(2)
    for name in ("all", "eth0", "eth1"):
        bench.host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter={rp_filter}")
    bench.start()
    far, ours = bench.cables[1].device.host, bench.host.link_local("eth1")[0]
    # Without a question of the device, which would make it known.
    far.ip(f"neigh add {ours} lladdr {bench.cables[1].port.mac} dev eth0 nud permanent")
    with (
        bench.host.call(listening, socket.SOCK_DGRAM, "") as near,
        far.call(listening, socket.SOCK_DGRAM, device_address(1)) as device,
    ):
        device.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        device.sendto(b"for us", (str(ours), 4711))
        assert near.recv(100) == b"for us"
        assert bench.routes() == {}
        device.sendto(b"for all", ("169.254.255.255", 4711))
        wait_until(bench.routes, "a route")
        device.sendto(b"for all, again", ("169.254.255.255", 4711))
        assert near.recv(100) == (b"for all, again" if rp_filter == 1 else b"for all")
    far.ip(f"neigh del {ours} dev eth0")
    bench.learned(1, 0)
    for link in (0, 1):
        talks(bench, link)
    forwarding = bench.host.run("sysctl", "-n", "net.ipv4.conf.all.forwarding")
    assert forwarding.strip() == "0"


def test_one_link_has_nothing_of_this(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    daemon = bench.start(links=slice(1))
    bench.announce(0, device_address(0))
    assert bench.pings(device_address(0))
    assert bench.routes() == {} and "1691" not in bench.host.ip("rule")
    assert report(daemon)["neighbours"] == []
    assert listens(daemon) == 0
    other = bench.start(links=slice(1, 2))
    wait_until(lambda: listens(daemon) == listens(other) == 2, "two sockets")
    assert other.stop() == 0
    wait_until(lambda: listens(daemon) == 0, "no socket")


def test_a_device_that_moves(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    bench.start()
    first, second = (cable.device for cable in bench.cables)
    first.host.ip(f"addr add {X}/16 dev eth0")
    bench.learned(0, address=X)
    assert bench.pings(X)
    first.host.ip(f"addr del {X}/16 dev eth0")
    second.host.ip(f"addr add {X}/16 dev eth0")
    bench.announce(1, X)
    wait_until(lambda: bench.routes().get(str(X)) == "eth1", "the other route")
    assert bench.pings(X)


def test_a_link_that_goes_and_comes(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    bench.start()
    bench.learned(0, 1)
    bench.cables[1].port.carrier(False)
    wait_until(lambda: bench.routes() == {}, "no routes")
    wait_until(lambda: "1691" not in bench.host.ip("rule"), "no rule")
    assert bench.pings(device_address(0))
    bench.cables[1].port.carrier(True)
    bench.settled()
    for link in (0, 1):
        wait_until(lambda link=link: bench.pings(device_address(link), 3), f"ping {link}")  # type: ignore[misc]
    bench.wait_routes(0, 1)


def test_one_address_on_two_links(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    daemon = bench.start()
    for link in (0, 1):
        bench.cables[link].device.host.ip(f"addr add {X}/16 dev eth0")
    bench.learned(1, address=X)
    bench.announce(0, X)
    first, second = (cable.device.mac for cable in bench.cables)
    wait_until(lambda: report(daemon, "eth1")["notes"], "a note")
    [note] = report(daemon, "eth1")["notes"]
    assert "ambiguous" in note and first in note and second in note
    for _ in range(3):
        bench.announce(0, X)
    assert bench.routes() == {str(X): "eth1"}
    assert "ambiguous" in run(daemon, f"route {X}").out
    daemon.wait_line("is on two links")
    assert daemon.output.count("is on two links") == 1
    # A client that is bound to an address stays on the link of that address.
    source = bench.host.link_local("eth0")[0]
    since = bench.cables[0].port.sniffer.mark()
    bench.host.run("ping", "-c", "1", "-W", "1", "-I", str(source), str(X))
    bench.cables[0].port.sniffer.wait_for(
        lambda f: f.spa == source and f.tpa == X, PATIENCE, since=since
    )


def test_a_stranger_takes_nobodys_place(make_bench: Callable[[int], Bench]) -> None:
    """On its link it claims a neighbour of the other one, then more addresses than the table has places."""
    bench = make_bench(2)
    daemon = bench.start()
    bench.learned(0, 1)
    begun = daemon.usage()
    started = time.monotonic()
    for number in range(3000):
        bench.announce(1, IPv4Address("169.254.64.0") + number, STRANGER)
        if number % 300 == 0:
            bench.announce(1, device_address(0), STRANGER)
    wait_until(lambda: len(report(daemon, "eth1")["neighbours"]) == 256, "a full table")
    time.sleep(2)
    assert len(report(daemon, "eth1")["neighbours"]) == 256
    routes = bench.routes()
    assert routes[str(device_address(0))] == "eth0" and routes[str(device_address(1))] == "eth1"
    for link in (0, 1):
        talks(bench, link)
    spent = daemon.usage() - begun
    assert spent.cpu_seconds < 0.5 * (time.monotonic() - started) + 0.5


def test_a_crash(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    before = configuration(bench.host)
    daemon = bench.start()
    bench.learned(0, 1)
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert len(bench.routes()) == 2
    said = len(daemon.lines)
    daemon.start()
    daemon.wait_line("eth1: announcing -> bound", PATIENCE, since=said)
    daemon.wait_line("eth0: announcing -> bound", PATIENCE, since=said)
    for link in (0, 1):
        wait_until(lambda link=link: bench.pings(device_address(link), 3), f"ping {link}")  # type: ignore[misc]
    assert daemon.stop() == 0
    assert configuration(bench.host)[:3] == before[:3]


def test_a_reload(make_bench: Callable[[int], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    for_every_user(monkeypatch)
    bench = make_bench(2)
    daemon = bench.start()
    bench.learned(0, 1)
    routes = bench.routes()
    assert run(daemon, "reload").status == 0
    assert bench.routes() == routes
    bench.learned(1, address=X)
    assert [one["address"] for one in report(daemon, "eth0")["neighbours"]] == [
        str(device_address(0))
    ]


def test_two_processes(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    before = configuration(bench.host)
    first = bench.start(links=slice(0, 1))
    second = bench.start(links=slice(1, 2))
    wait_until(lambda: listens(first) == listens(second) == 2, "two sockets of each")
    for link in (1, 0):
        wait_until(lambda link=link: bench.pings(device_address(link), 3), f"ping {link}")  # type: ignore[misc]
    bench.wait_routes(0, 1)
    # A device moves from the link of one process to that of the other.
    old, new = (cable.device.host for cable in bench.cables)
    old.ip(f"addr del {device_address(0)}/16 dev eth0")
    new.ip(f"addr add {device_address(0)}/16 dev eth0")
    bench.announce(1, device_address(0))
    wait_until(lambda: bench.routes().get(str(device_address(0))) == "eth1", "a move")
    found = [one["address"] for one in report(second, "eth1")["neighbours"]]
    assert found == [str(device_address(0)), str(device_address(1))]
    wait_until(lambda: report(first)["neighbours"] == [], "the other process follows")
    assert second.stop() == 0
    wait_until(lambda: bench.routes() == {}, "no routes")
    assert first.stop() == 0
    assert configuration(bench.host)[:3] == before[:3]


def test_known_neighbours_do_not_wake_the_daemon(make_bench: Callable[[int], Bench]) -> None:
    bench = make_bench(2)
    daemon = bench.start()

    def everybody() -> None:
        for number in range(200):
            bench.announce(1, X + number, f"02:00:00:01:00:{number:02x}")

    bench.learned(1)
    everybody()
    wait_until(lambda: len(bench.routes()) == 201, "routes")
    time.sleep(1.2)
    everybody()  # this makes the filter
    time.sleep(2)
    begun = daemon.usage()
    for _ in range(5):
        everybody()
    time.sleep(0.5)
    spent = daemon.usage() - begun
    assert spent.voluntary <= 3


SENDER = bytes.fromhex("020000000077")


def _datagram(to: str, source: IPv4Address) -> bytes:
    """A frame of UDP."""
    header = b"\x45\x00\x00\x1c" + bytes(4) + b"\x01\x11\x00\x00"
    addresses = frames.mac_bytes(to) + SENDER
    return addresses + b"\x08\x00" + header + source.packed + bytes([224, 0, 0, 251]) + bytes(8)


@pytest.fixture
def eth0(make_bench: Callable[[int], Bench]) -> Cable:
    return make_bench(1).cables[0]


def test_the_filter_of_what_leaves(eth0: Cable) -> None:
    """The kernel's questions for link-local addresses are seen; not those for a known one, for others, and our own."""
    host = eth0.host
    host.ip("addr add 169.254.1.1/16 dev eth0")
    host.ip("addr add 192.0.2.1/24 dev eth0")
    # A setting of the namespace from Linux 6.8 on; before 6.7 that is the default.
    host.run("sysctl", "-qw", "net.core.optmem_max=20480", check=False)
    index, mac = host.index("eth0"), bytes.fromhex(eth0.port.mac.replace(":", ""))
    opened = host.call(NeighbourSocket, index, mac)
    with contextlib.closing(opened):
        known = [(X, mac), *((X + 1 + n, mac) for n in range(KNOWN_MAX - 1))]
        for _ in range(3):
            opened.ignore(known)
        since = eth0.port.sniffer.mark()
        wanted = [IPv4Address("169.254.99.1"), IPv4Address("169.254.99.2")]
        for address in (wanted[0], X, IPv4Address("192.0.2.9"), wanted[1]):
            host.send_udp(address)
            eth0.port.sniffer.wait_for(lambda f, a=address: f.tpa == a, PATIENCE, since=since)  # type: ignore[misc]
        opened.send(arp.question(mac, IPv4Address("169.254.1.1"), X + 5000).emit())
        own = frames.announcement(eth0.port.mac, IPv4Address("169.254.1.1"))
        eth0.port.send(own)
        # What programs here send teaches nothing, whoever it is from.
        with host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as other:
            other.bind(("eth0", 0))
            other.send(own)
            other.send(frames.probe(eth0.port.mac, X + 6000))
            other.send(frames.conflict_reply(eth0.port.mac, "169.254.1.1", tpa=X + 7000))
            other.send(_datagram(frames.BROADCAST, IPv4Address("169.254.66.5")))
        # Nor does what is for another host, or for a VLAN.
        to_other = frames.mac_bytes(STRANGER) + frames.announcement(OTHER, "169.254.66.4")[6:]
        eth0.port.send(to_other)
        eth0.port.send(frames.tagged(frames.announcement(OTHER, "169.254.66.3"), 7))
        # A datagram to all shows who is there; one to this host alone, and one from elsewhere, do not.
        eth0.port.send(_datagram(eth0.port.mac, IPv4Address("169.254.66.2")))
        eth0.port.send(_datagram(frames.BROADCAST, IPv4Address("10.0.0.1")))
        # The last one: nothing follows what is waited for.
        eth0.port.send(_datagram(frames.BROADCAST, IPv4Address("169.254.66.1")))
        shown: set[tuple[bytes, IPv4Address]] = {(SENDER, IPv4Address("169.254.66.1"))}
        shown |= {(mac, address) for address in wanted}
        found: set[tuple[bytes, IPv4Address]] = set()

        def all_of_them() -> bool:
            found.update((p.sha, p.tpa if p.sha == mac else p.spa) for p in opened.read())
            return found >= shown

        wait_until(all_of_them, "both questions, and the datagram")
        assert found == shown


def test_frames_that_find_no_room_are_counted(eth0: Cable) -> None:
    opened = eth0.host.call(NeighbourSocket, eth0.host.index("eth0"), SENDER)
    with contextlib.closing(opened):
        assert opened.dropped() == 0
        for _ in range(50):
            for number in range(200):
                eth0.port.send(frames.announcement(OTHER, X + number))
            if opened.dropped() > 0:
                break
        else:
            pytest.fail("10000 frames found room")
        wait_until(lambda: not opened.read(), "an empty socket")
        opened.dropped()
        eth0.port.send(frames.announcement(OTHER, X))
        wait_until(opened.read, "room again")
        assert opened.dropped() == 0

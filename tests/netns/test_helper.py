"""The C helper on a veth pair: what wakes it, what it answers, what it survives.

No interface has an IP address, so the kernel itself sends no ARP.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from autoip.kernel import arp_socket
from autoip.kernel.arp_socket import FRAME_LENGTH, ArpListener, ArpSocket, Phase, Received
from lab import Namespace, frames
from lab.daemon import REPOSITORY

from .helpers import NETNS, wait_until

pytestmark = NETNS

OUR_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("020000000002")
THEIR_MAC = bytes.fromhex("020000000003")
BROADCAST = b"\xff" * 6
OURS = IPv4Address("169.254.10.20")
OTHER = IPv4Address("169.254.10.21")
NOBODY = IPv4Address("0.0.0.0")

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python has no name for it


def arp(
    sha: bytes,
    spa: IPv4Address,
    tpa: IPv4Address,
    *,
    operation: int = 1,
    to: bytes = BROADCAST,
    tags: bytes = b"",
) -> bytes:
    """An ARP packet, padded as on a real Ethernet."""
    frame = frames.arp(
        operation, sha=sha.hex(":"), spa=spa, tpa=tpa, destination=frames.mac_text(to)
    )
    return frames.padded(frame[:12] + tags + frame[12:])


CONFLICT = arp(THEIR_MAC, OURS, OTHER)
ANNOUNCEMENT = arp(OUR_MAC, OURS, OURS)[:FRAME_LENGTH]


class Wire:
    """A namespace with a cable: `own` and `far` (where the test speaks and hears)."""

    def __init__(self) -> None:
        self.namespace = Namespace("helper")
        self._sockets: list[socket.socket] = []
        self.ip(
            f"link add own address {OUR_MAC.hex(':')} type veth"
            f" peer name far address {PEER_MAC.hex(':')}"
        )
        self.up("own", "far")
        self.peer = self.listen("far")

    def ip(self, commands: str) -> None:
        self.namespace.run("ip", "-batch", "-", stdin=commands)

    def up(self, *names: str) -> None:
        """Sets interfaces up and waits until they carry frames: before, the kernel drops them."""
        self.ip("".join(f"link set {name} up\n" for name in names))

        def ready() -> bool:
            links = json.loads(self.namespace.ip("-json link"))
            return all(
                link["operstate"] == "UP" and link["qdisc"] != "noop"
                for link in links
                if link["ifname"] in names
            )

        wait_until(ready, "the interfaces carry frames")

    def listen(self, name: str) -> socket.socket:
        """A plain socket that hears and sends everything on one interface."""
        sock = self.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.namespace.call(sock.bind, (name, _ETH_P_ALL))
        sock.settimeout(20)
        self._sockets.append(sock)
        return sock

    def open(self, listener: ArpListener, name: str = "own") -> ArpSocket:
        """A socket; if the kernel defends, it does so from now on."""
        opened = self.namespace.call(listener.open, self.namespace.index(name), OUR_MAC)
        if listener.in_kernel:
            wait_until(lambda: opened.attached is not None, "the program at the interface")
        return opened

    def run(self, code: str, who: str = "thread") -> subprocess.Popen[bytes]:
        """A Python process in the namespace; it has said "ready" when this returns."""
        process = self.namespace.popen(
            [sys.executable, "-c", code, who],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def heard(self, sock: socket.socket | None = None) -> tuple[bytes, float]:
        """The next frame that came from our side: its bytes, its time on CLOCK_REALTIME."""
        while True:
            frame, control, _, address = (sock or self.peer).recvmsg(2048, 128)
            if address[2] != _PACKET_OUTGOING:
                seconds, nanoseconds = struct.unpack("qq", control[0][2][:16])
                return frame, seconds + nanoseconds / 1e9

    def nothing_heard(self) -> bool:
        """Whether no frame has come from our side."""
        self.peer.setblocking(False)
        try:
            while True:
                if self.peer.recvfrom(2048)[1][2] != _PACKET_OUTGOING:
                    return False
        except BlockingIOError:
            return True
        finally:
            self.peer.settimeout(20)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.namespace.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def listener() -> Iterator[ArpListener]:
    with ArpListener() as listener:
        yield listener


INTERVAL = 0.5
"""Seconds after a conflict in which the kernel does not answer the next one."""


@pytest.fixture(params=["thread", "kernel"])
def either(request: pytest.FixtureRequest) -> Iterator[ArpListener]:
    """One whose thread defends, or before it the kernel."""
    defence = arp_socket.load_defence(INTERVAL) if request.param == "kernel" else ""
    if isinstance(defence, str) and defence:
        pytest.skip(defence)
    with ArpListener(defence) as listener:
        yield listener


def collect(listener: ArpListener, count: int) -> list[Received]:
    """Waits for so many events."""
    events: list[Received] = []
    while len(events) < count:
        assert select.select([listener], [], [], 20)[0], f"only {len(events)} events"
        events += listener.drain()
    assert len(events) == count
    return events


def nothing_but(wire: Wire, listener: ArpListener, frame: bytes) -> None:
    """Sends a conflict; it is the only one: whatever was sent before was none."""
    wire.peer.send(frame)
    assert [event.frame for event in collect(listener, 1)] == [frame[:FRAME_LENGTH]]


def threads(pid: int) -> dict[str, tuple[int, int]]:
    """Of each thread: wake-ups, and times it was pushed aside (CPU was used)."""
    result = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(
            line.split(":\t", 1)
            for line in (task / "status").read_text().splitlines()
            if ":\t" in line
        )
        result[f"{task.name} {status['Name']}"] = (
            int(status["voluntary_ctxt_switches"]),
            int(status["nonvoluntary_ctxt_switches"]),
        )
    return result


def cpu(pid: int) -> int:
    """Nanoseconds that the threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def spins(pid: int) -> bool:
    """Whether a thread goes on running although nothing happens."""
    for _ in range(50):
        before = threads(pid)
        time.sleep(0.1)
        if threads(pid) == before:
            return False
    return True


@contextlib.contextmanager
def traffic(sock: socket.socket, sent: list[bytes]) -> Iterator[None]:
    """Meanwhile these frames are sent over and over."""
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            for frame in sent:
                with contextlib.suppress(OSError):
                    sock.send(frame)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


HOLDER = f"""
import os, select, sys, time
from ipaddress import IPv4Address
from socket import if_nametoindex
from autoip.kernel.arp_socket import ArpListener, Phase, load_defence
listener = ArpListener(load_defence({INTERVAL}) if "kernel" in sys.argv else "")
sock = listener.open(if_nametoindex("own"), {OUR_MAC!r})
sock.watch(Phase.DEFEND, IPv4Address("{OURS}"))
sock.arm({ANNOUNCEMENT!r})
while listener.in_kernel and sock.attached is None: time.sleep(0.01)
"""
EITHER = pytest.mark.parametrize("who", ["thread", "kernel"])
"""Who answers in a HOLDER."""


@EITHER
def test_unrelated_arp_wakes_nobody(wire: Wire, who: str) -> None:
    """Not the program, not the helper's thread: the kernel's filter alone sees it."""
    process = wire.run(
        HOLDER
        + "print('ready', flush=True); select.select([listener, 0], [], []); sys.stdin.read()",
        who,
    )
    with process:
        noise = [
            arp(THEIR_MAC, OTHER, NOBODY),
            arp(THEIR_MAC, OTHER, OURS),  # who has our address?
            arp(THEIR_MAC, NOBODY, OURS),  # a probe for it
            arp(THEIR_MAC, OTHER, OURS, operation=2),
            arp(OUR_MAC, OURS, OURS),  # our own, reflected
            bytes(60),
        ]
        assert not spins(process.pid)
        before, used = threads(process.pid), cpu(process.pid)
        assert len(before) == 2
        for number in range(3000):
            wire.peer.send(noise[number % len(noise)])
        assert threads(process.pid) == before
        assert cpu(process.pid) == used

        # The same count does change when there is a conflict.
        wire.peer.send(CONFLICT)
        assert wire.heard()[0][:FRAME_LENGTH] == ANNOUNCEMENT
        wait_until(lambda: threads(process.pid) != before, "somebody wakes")
        process.communicate()


@EITHER
def test_defends_while_python_is_busy(wire: Wire, who: str) -> None:
    """The interpreter never lets go of its lock; the answer comes all the same, once."""
    process = wire.run(
        HOLDER + "sys.setswitchinterval(1e6)\nprint('ready', flush=True)\nwhile True: pass",
        who,
    )
    with process:
        wire.peer.send(CONFLICT)
        assert wire.heard()[0][:FRAME_LENGTH] == ANNOUNCEMENT
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wire.nothing_heard()


def test_first_conflict_defended_second_not(wire: Wire, either: ArpListener) -> None:
    sock = wire.open(either)
    sock.watch(Phase.DEFEND, OURS)
    sock.arm(ANNOUNCEMENT)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    wire.peer.send(CONFLICT)
    wire.peer.send(arp(THEIR_MAC, OURS, OURS, operation=2))
    first, second = collect(either, 2)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert first.frame == CONFLICT[:FRAME_LENGTH]
    assert first.token == second.token == sock.token
    assert first.generation == second.generation == sock.generation == 1
    assert first.defended_at is not None
    assert before <= first.at <= first.defended_at <= now
    assert second.defended_at is None
    assert first.at <= second.at <= now
    assert wire.heard()[0].rstrip(b"\0") == ANNOUNCEMENT
    assert wire.nothing_heard()

    assert sock.arm(ANNOUNCEMENT)
    wire.peer.send(CONFLICT)
    assert collect(either, 1)[0].defended_at is not None
    assert wire.heard()[0][:FRAME_LENGTH] == ANNOUNCEMENT


def test_time_of_arrival_is_the_kernels(wire: Wire, listener: ArpListener) -> None:
    """Not the time when the thread, or Python, got round to it."""
    sock = wire.open(listener)
    sock.watch(Phase.DEFEND, OURS)
    # The kernel begins to stamp frames as they come in a moment after it was asked to.
    for _ in range(50):
        wire.peer.send(CONFLICT)
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        time.sleep(0.02)
        if collect(listener, 1)[0].at <= after:
            return
    pytest.fail("the time stamps are later than the frames")


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_vlan_tagged_frames_are_no_conflict(wire: Wire, either: ArpListener, tpid: int) -> None:
    """They belong to another link.  (Tag 0 only carries a priority: the link is ours.)"""
    sock = wire.open(either)
    sock.watch(Phase.DEFEND, OURS)
    for vid in (1, 5, 4094):
        wire.peer.send(arp(THEIR_MAC, OURS, OTHER, tags=struct.pack("!HH", tpid, vid)))
    wire.peer.send(arp(THEIR_MAC, OURS, OTHER, tags=struct.pack("!HHHH", tpid, 5, 0x8100, 6)))
    nothing_but(wire, either, arp(PEER_MAC, OURS, OTHER))


def test_frames_to_others_are_no_conflict(wire: Wire, either: ArpListener) -> None:
    """What a promiscuous interface overhears was not sent to us."""
    wire.ip("link set own promisc on")
    sock = wire.open(either)
    sock.watch(Phase.DEFEND, OURS)
    wire.peer.send(arp(THEIR_MAC, OURS, OTHER, to=bytes.fromhex("020000000009")))
    nothing_but(wire, either, arp(PEER_MAC, OURS, OTHER))
    nothing_but(wire, either, arp(THEIR_MAC, OURS, OTHER, to=OUR_MAC))


def test_what_we_send_is_no_conflict(wire: Wire, either: ArpListener) -> None:
    """Not even with another MAC: only what comes in counts."""
    sock = wire.open(either)
    sock.watch(Phase.DEFEND, OURS)
    wire.listen("own").send(CONFLICT)
    assert wire.heard()[0] == CONFLICT
    nothing_but(wire, either, arp(PEER_MAC, OURS, OTHER))


def test_send_returns_no_earlier_than_the_wire(wire: Wire, listener: ArpListener) -> None:
    sock = wire.open(listener)

    def ahead() -> float:
        """How much later than the frame came out of the wire send() says that it was sent."""
        sent = sock.send(ANNOUNCEMENT)
        frame, at = wire.heard()
        assert frame == ANNOUNCEMENT
        # The greatest of some differences: the one with the shortest pause between the clocks.
        offset = max(
            time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
            for _ in range(20)
        )
        return sent - (at - offset)

    tolerance = 20e-6  # so much the clocks can differ, read one by one
    # The kernel begins to stamp frames as they come in a moment after it was asked to.
    until = time.monotonic() + 20
    while ahead() < -tolerance:
        assert time.monotonic() < until
    for _ in range(50):
        assert ahead() >= -tolerance


def test_swap_under_traffic(wire: Wire, either: ArpListener) -> None:
    """No event of a generation is about an address that this one did not watch."""
    sock = wire.open(either)
    watched: dict[int, IPv4Address] = {}
    seen: set[IPv4Address] = set()
    with traffic(wire.peer, [arp(THEIR_MAC, OURS, NOBODY), arp(THEIR_MAC, OTHER, NOBODY)]):
        until = time.monotonic() + 20
        while len(watched) < 1000 or len(seen) < 2:
            assert time.monotonic() < until
            address = (OURS, OTHER)[len(watched) % 2]
            sock.watch(Phase.DEFEND, address)
            watched[sock.generation] = address
            for event in either.drain():
                assert event.frame[28:32] == watched[event.generation].packed
                seen.add(watched[event.generation])


def test_close_under_traffic(wire: Wire, either: ArpListener) -> None:
    with traffic(wire.peer, [CONFLICT]):
        tokens = set()
        for number in range(30):
            sock = wire.open(either)
            sock.watch(Phase.DEFEND, OURS)
            if number % 2:
                sock.arm(ANNOUNCEMENT)
            if number % 3:
                select.select([either], [], [], 20)
            sock.close()
            tokens.add(sock.token)
            assert {event.token for event in either.drain()} <= tokens
    assert len(tokens) == 30
    assert either.drain() == []


def test_flood_is_bounded_and_counted(wire: Wire, listener: ArpListener) -> None:
    sock = wire.open(listener)
    sock.watch(Phase.DEFEND, OURS)
    for _ in range(5000):
        wire.peer.send(CONFLICT)
    wait_until(lambda: not select.select([sock], [], [], 0)[0], "all is read")
    sock.watch(Phase.SILENT, None)
    events = listener.drain()
    assert 200 < len(events) <= 256
    assert 0 < listener.lost <= 5000 - len(events)
    # It works on as before, as soon as the socket's own buffer has room again.
    lost = listener.lost
    sock.watch(Phase.DEFEND, OTHER)
    for _ in range(100):
        wire.peer.send(arp(THEIR_MAC, OTHER, OURS))
        if select.select([listener], [], [], 0.2)[0]:
            break
    assert {event.generation for event in listener.drain()} == {sock.generation}
    assert listener.lost == lost


WAITER = HOLDER + "print('ready', flush=True); sys.stdin.read()"


@EITHER
def test_interface_down_and_up(wire: Wire, who: str) -> None:
    """Socket and program survive it, and the thread sleeps meanwhile."""
    with wire.run(WAITER, who) as process:
        for _ in range(3):
            wire.ip("link set own down")
            assert not spins(process.pid)
            wire.up("own", "far")
        wire.peer.send(CONFLICT)
        assert wire.heard()[0][:FRAME_LENGTH] == ANNOUNCEMENT
        process.communicate()


@EITHER
def test_interface_removed(wire: Wire, who: str) -> None:
    with wire.run(WAITER, who) as process:
        wire.ip("link del own")
        assert not spins(process.pid)
        process.communicate()
        assert process.returncode == 0


def test_send_on_an_interface_that_is_down_or_gone(wire: Wire, listener: ArpListener) -> None:
    """Told as not sent; the first frame after it is up again goes out."""
    sock = wire.open(listener)
    for _ in range(20):
        wire.ip("link set own down")
        with pytest.raises(OSError, match="Network is down") as error:
            sock.send(ANNOUNCEMENT)
        assert error.value.errno == errno.ENETDOWN
        # In one go: the error of going down may still be in the socket.
        wire.ip("link set own down\nlink set own up")
        sock.send(ANNOUNCEMENT)
    wire.ip("link del own")
    with pytest.raises(OSError, match="No such device") as error:
        sock.send(ANNOUNCEMENT)
    assert error.value.errno == errno.ENXIO
    sock.close()
    assert listener.drain() == []


def test_opened_while_down(wire: Wire, either: ArpListener) -> None:
    wire.ip("link set own down")
    sock = wire.open(either)
    sock.watch(Phase.DEFEND, OURS)
    sock.arm(ANNOUNCEMENT)
    wire.up("own", "far")
    wire.peer.send(CONFLICT)
    assert collect(either, 1)[0].defended_at is not None


def test_open_errors(wire: Wire, listener: ArpListener) -> None:
    with pytest.raises(OSError, match="No such device") as error:
        wire.namespace.call(listener.open, 0x7FFFFFFF, OUR_MAC)
    assert error.value.errno == errno.ENODEV


def test_two_hundred_interfaces(wire: Wire, listener: ArpListener) -> None:
    """Each hears its own link and address, and answers there."""
    count = 200
    wire.ip("".join(f"link add own{n} type veth peer name far{n}\n" for n in range(count)))
    wire.up(*(f"{end}{n}" for n in range(count) for end in ("own", "far")))
    base = int(OURS)
    socks = [wire.open(listener, f"own{n}") for n in range(count)]
    for n, sock in enumerate(socks):
        address = IPv4Address(base + n)
        sock.watch(Phase.DEFEND, address)
        sock.arm(arp(OUR_MAC, address, address)[:FRAME_LENGTH])
    with wire.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        for n in range(count):
            for offset in (1, 0):  # the neighbour's address is nobody's here
                sender.sendto(
                    arp(THEIR_MAC, IPv4Address(base + n + offset), NOBODY),
                    (f"far{n}", frames.ETHERTYPE_ARP),
                )
    events = collect(listener, count)
    assert {event.token for event in events} == {sock.token for sock in socks}
    assert all(event.defended_at is not None for event in events)
    assert listener.lost == 0

"""The kernel defends (csrc/defence.c): also while the daemon is stopped. Without CAP_BPF the helper's thread does."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address
from math import inf
from random import Random
from typing import Any

import pytest

from autoip.core import acd
from autoip.core.arp import ArpPacket, announcement
from autoip.core.constants import Timing
from autoip.core.ipv4ll import State
from autoip.daemon.negotiator import Negotiator
from autoip.kernel import arp_socket, tcx
from autoip.kernel.arp_broadcast import BY_FILTER
from autoip.kernel.arp_socket import Phase
from autoip.kernel.model import Link
from autoip.kernel.native import ffi
from lab import Daemon, Namespace, Port, Switch, frames
from lab import tcx as foreign_tcx
from lab.packet_ring import PacketRing
from lab.tcx import INGRESS

from .commands import report
from .conftest import MakeDaemon, MakeHost
from .helpers import (
    NETNS,
    NO_TCX,
    PATIENCE,
    RIVAL,
    WITHOUT_BPF,
    A,
    B,
    bind,
    claimed,
    claimed_other,
    has_tcx,
    link,
    reclaimed,
    wait_until,
)

pytestmark = NETNS

FAST = ("--delay", "50", "--ip", str(A))
INTERVAL = 10.0
"""DEFEND_INTERVAL of RFC 3927."""
BY_DAEMON = "the kernel does not defend the address itself, the daemon does"


def conflict(port: Port, length: int = 60) -> int:
    """Dispute the address, by a frame of that length; a mark of the sniffer from before."""
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A).ljust(length, b"\xaa"))
    return since


def defended(port: Port, since: int) -> None:
    """Wait until the address is announced, by a frame that has nothing of the conflict's padding."""
    answer = port.sniffer.wait_announcement(A, PATIENCE, since=since)
    assert not any(answer.data[42:])


def undefended(port: Port, since: int) -> None:
    """The address is not announced within a second."""
    time.sleep(1)
    assert not port.sniffer.announcements(A, since=since)


def places(daemon: Daemon, port: Port) -> list[int]:
    """The numbers of the defence's links at the interface."""
    return foreign_tcx.links(daemon.pid, port.host.index(port.name), INGRESS)


def attached(daemon: Daemon, port: Port) -> None:
    """Wait for the program's place at the interface."""
    wait_until(lambda: places(daemon, port), "the program at the interface")


@pytest.fixture
def bound(port: Port, make_autoip: MakeDaemon) -> Daemon:
    daemon = make_autoip(port, *FAST)
    bind(port, daemon)
    if any(BY_DAEMON in limit for limit in report(daemon)["limits"]):
        pytest.skip(NO_TCX)
    attached(daemon, port)
    return daemon


def test_a_stopped_daemon_is_defended(port: Port, bound: Daemon) -> None:
    """def-once, def-again, def-yield: by the kernel, and then by the daemon as if it had seen each at its time."""
    bound.signal(signal.SIGSTOP)
    first = conflict(port, 64)
    began = time.monotonic()
    defended(port, first)
    time.sleep(max(0.0, began + INTERVAL + 0.5 - time.monotonic()))
    defended(port, conflict(port, 56))
    since = conflict(port, 42)  # too soon
    undefended(port, since)
    undefended(port, conflict(port))
    said = len(bound.lines)
    bound.signal(signal.SIGCONT)
    other = claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)
    bound.wait_line(f"{RIVAL} claims {A}", since=said)
    found = report(bound)
    assert (found["address"], found["defences"], found["conflicts"]) == (str(other), 2, 3)
    assert found["kernel_defence"] == {"answered": 2, "left": 1, "failed": 0}
    assert not found["notes"] and "internal error" not in bound.output


def test_a_conflict_from_a_packet_ring(port: Port, bound: Daemon) -> None:
    """Its packet is not beside its header: what is said of an address is looked for in a copy."""
    bound.signal(signal.SIGSTOP)
    ring = port.switch.namespace.call(PacketRing, port.far)
    with contextlib.closing(ring):
        since = port.sniffer.mark()
        ring.send(frames.conflict_request(RIVAL, B).ljust(60, b"\xaa"))
        undefended(port, since)
        ring.send(frames.conflict_request(RIVAL, A).ljust(60, b"\xaa"))
        defended(port, since)
    bound.signal(signal.SIGCONT)
    wait_until(lambda: report(bound)["defences"] == 1, "the report")


def test_somebody_detaches_the_program(port: Port, bound: Daemon) -> None:
    """Whoever asks for the status has it put back, and so does a claim, with one note; not after a close."""
    index = port.host.index(port.name)

    def detach() -> None:
        foreign_tcx.detach(bound.pid, index, INGRESS)
        assert not places(bound, port)

    detach()
    report(bound)
    attached(bound, port)
    bound.signal(signal.SIGSTOP)
    defended(port, conflict(port))
    bound.signal(signal.SIGCONT)
    note = "somebody removed our defence; it was put back"
    wait_until(lambda: report(bound)["notes"] == [note], "the note")
    detach()
    since = port.sniffer.mark()
    bound.request("refresh")
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    attached(bound, port)
    found = report(bound)
    assert (found["notes"], bound.output.count(note)) == ([note], 1)
    assert found["kernel_defence"] == {"answered": 1, "left": 0, "failed": 0}
    port.host.ip(f"link set {port.name} down")
    wait_until(lambda: not places(bound, port), "the end of the link")
    report(bound)
    time.sleep(1.0)
    assert not places(bound, port)
    assert bound.output.count(note) == 1


def test_a_link_that_was_closed_is_not_attached_again(stack: contextlib.ExitStack) -> None:
    host = stack.enter_context(Namespace("closed"))
    if not has_tcx(host):
        pytest.skip(NO_TCX)

    def run() -> None:
        program = arp_socket.load_broadcast()
        assert isinstance(program, int), program
        link = tcx.Link(program, 1, egress=True)
        assert (link.attached, link.detached) == (False, False)
        for _ in range(2):
            link.attach()
            assert (link.attached, link.detached) == (True, False)
            [number] = foreign_tcx.links(os.getpid(), 1)
            link.attach()
            assert foreign_tcx.links(os.getpid(), 1) == [number]
            foreign_tcx.detach(os.getpid(), 1)
            assert (link.attached, link.detached) == (False, True)
        link.close()
        link.attach()
        assert (link.descriptor, link.attached, link.detached) == (None, False, False)
        assert tcx.programs(1, egress=True) == (0, None)
        os.close(program)

    host.call(run)


def fill(host: Namespace, index: int, side: int, theirs: contextlib.ExitStack) -> None:
    """Take all places of tcx there."""
    while True:
        link = host.call(foreign_tcx.attach, index, side)
        theirs.callback(os.close, link)


def test_an_interface_that_has_no_place(
    make_host: MakeHost, switch: Switch, make_autoip: MakeDaemon, stack: contextlib.ExitStack
) -> None:
    """Its status has both reasons, that of the other interface has none; a claim tries again."""
    full = make_host(plugged=True)
    other = switch.attach(full.host, "eth1", plugged=True)
    if not has_tcx(full.host):
        pytest.skip(NO_TCX)
    with contextlib.ExitStack() as theirs:
        for side in (INGRESS, foreign_tcx.EGRESS):
            with pytest.raises(OSError, match=os.strerror(errno.ERANGE)):
                fill(full.host, full.host.index(full.name), side, theirs)
        daemon = make_autoip(full, other.name, "--delay", "50")
        since = [port.sniffer.mark() for port in (full, other)]
        daemon.start()
        claimed(full, since=since[0])
        claimed(other, since=since[1])
        reasons = [
            f"{what}: other programs have all places of tcx there"
            for what in (BY_FILTER, BY_DAEMON)
        ]
        assert report(daemon)["limits"] == reasons
        assert report(daemon, other.name)["limits"] == []
    for reason in reasons:
        daemon.wait_line(f"{full.name}: {reason}")
        assert daemon.output.count(reason) == 1
    mark = full.sniffer.mark()
    daemon.request("refresh")
    reclaimed(full, since=mark)
    assert report(daemon)["limits"] == []
    assert places(daemon, full)


def test_a_stopped_daemon_goes_on(port: Port, bound: Daemon) -> None:
    """def-once, def-yield: a defence by the kernel counts, so the next conflict soon after costs the address."""
    bound.signal(signal.SIGSTOP)
    defended(port, conflict(port))
    bound.signal(signal.SIGCONT)
    wait_until(lambda: report(bound)["defences"] == 1, "the report of the defence")
    assert A in port.host.link_local(port.name)
    since = conflict(port)
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)


def test_the_first_conflict_waits_for_the_thread(port: Port, bound: Daemon) -> None:
    """def-yield: the program answers the second one, since it does not know of the first; that saves nothing."""
    bound.signal(signal.SIGSTOP)
    since = conflict(port, 65)
    defended(port, conflict(port))
    bound.signal(signal.SIGCONT)
    claimed_other(port, A, since=since)


def test_a_killed_daemon_does_not_defend(port: Port, bound: Daemon) -> None:
    """The program goes with the process, and nothing of it is left."""
    bound.kill()
    undefended(port, conflict(port))
    bind(port, bound)
    attached(bound, port)
    defended(port, conflict(port))
    assert bound.stop() == 0
    undefended(port, conflict(port))


def test_abandon_never_arms(port: Port, make_by: MakeDaemon) -> None:
    """def-abandon: not even while the daemon is stopped."""
    daemon = make_by(port, *FAST, "--abandon")
    bind(port, daemon)
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    undefended(port, since)
    daemon.signal(signal.SIGCONT)
    claimed_other(port, A, since=since)


def test_in_another_namespace(port: Port, bound: Daemon, stack: contextlib.ExitStack) -> None:
    """An interface that goes there, under another name, takes no defence along."""
    index = port.host.index(port.name)
    other = stack.enter_context(Namespace("other"))
    port.host.ip(f"link set {port.name} netns {other.path} name elsewhere")
    bound.wait_line("there is no such interface")
    # The kernel detaches the link, and the daemon closes it.
    gone = (index, 0)
    wait_until(
        lambda: not any(foreign_tcx.links(bound.pid, one, INGRESS) for one in gone),
        "the program's end",
    )
    other.ip("link set elsewhere up")
    wait_until(lambda: link(other, "elsewhere")["operstate"] == "UP", "the other end of the move")
    undefended(port, conflict(port))


@pytest.mark.parametrize(
    ("before", "why"), [(WITHOUT_BPF, errno.EPERM), (foreign_tcx.WITHOUT, errno.EOPNOTSUPP)]
)
def test_without_the_kernel_the_thread_defends(
    port: Port, make_autoip: MakeDaemon, before: Sequence[str], why: int
) -> None:
    """def-once, def-yield: one line in the log and in the status; the rest is as ever."""
    daemon = make_autoip(port, *FAST)
    daemon.command[:0] = before
    bind(port, daemon)
    assert f"{BY_DAEMON}: {tcx.why(why)}" in report(daemon)["limits"]
    assert daemon.output.count(BY_DAEMON) == 1
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    undefended(port, since)
    daemon.signal(signal.SIGCONT)
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    wait_until(lambda: report(daemon)["defences"] == 1, "the report of the defence")
    since = conflict(port)
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)


def test_places_in_the_memory(stack: contextlib.ExitStack) -> None:
    """One for interfaces whose indexes end alike. Its counts are the interface's, from one socket to the next."""
    host = stack.enter_context(Namespace("memory"))
    host.ip("link set lo up")
    host.ip("link add far index 1025 type veth peer name other")
    mac = bytes.fromhex("020000000001")

    def run() -> None:
        defence = arp_socket.load_defence(INTERVAL)
        if isinstance(defence, str):
            pytest.skip(defence)
        threads = threading.active_count()
        with (
            arp_socket.ArpListener(defence) as listener,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
        ):
            near, far = listener.open(1, mac), listener.open(1025, mac)
            assert seen(near) == seen(far) == (None, None)  # neither watches
            near.watch(Phase.DEFEND, A)
            far.watch(Phase.DEFEND, A)
            wait_until(lambda: near.attached, "the program at the interface")
            near.arm(announcement(mac, A).emit())
            wire.sendto(frames.padded(frames.conflict_request(RIVAL, A)), ("lo", 0))
            wait_until(listener.drain, "the conflict")
            assert seen(near) == ((1, 0, 0), None)
            busy = f"{BY_DAEMON}: another interface has its place in the memory"
            assert seen(far) == (None, busy)
            near.close()
            again = listener.open(1, mac)
            again.watch(Phase.PROBE, B)
            assert seen(again) == ((1, 0, 0), None)
            again.close()
            far.watch(Phase.PROBE, B)
            assert seen(far) == ((0, 0, 0), None)
            listener.own(of_one_row(9))
            many = f"{BY_DAEMON}: this host has too many hardware addresses"
            assert seen(far) == ((0, 0, 0), many)
            far.close()
        wait_until(lambda: threading.active_count() <= threads, "the ends of the links")

    host.call(run)


def seen(sock: arp_socket.ArpSocket) -> tuple[arp_socket.Counts | None, str | None]:
    return sock.counts, sock.undefended


def of_one_row(count: int) -> list[bytes]:
    """Hardware addresses in one row of the table that the program has: see autoip_own_row()."""
    rows: dict[int, list[bytes]] = {}
    for number in range(1 << 16):
        mac = b"\x02" + number.to_bytes(5, "big")
        value = int.from_bytes(mac, sys.byteorder)
        found = rows.setdefault((value * 0x9E3779B97F4A7C15) % (1 << 64) >> 55, [])
        found.append(mac)
        if len(found) == count:
            return found
    raise AssertionError


# The borders


class Judged:
    """A core that holds one of two addresses all the time, beside one that has no reflex and is given the same."""

    def __init__(self) -> None:
        self.mac = bytes.fromhex("020000000001")
        self.idle = False
        self.changes = 0
        self.given_up = 0
        self.defended = 0
        self.by_reflex = 0
        self.late = 0
        """Answered by the program, since the one before, which only the thread answers, still waited for the thread."""
        self._long = False
        self.received: Counter[int] = Counter()
        self.candidate: IPv4Address | None = B
        self.change()

    def change(self) -> None:
        """Hold the other address, as after a claim."""
        self.candidate = A if self.candidate == B else B
        self.changes += 1
        self._acd, self._judge = (
            acd.Acd(
                self.candidate, self.mac, Timing(), Random(0), 0.0, state=acd.Bound(acd.Guard())
            )
            for _ in range(2)
        )

    def receive(self, packet: ArpPacket, at: float, defended_at: float | None = None) -> None:
        number = number_of(packet.emit())
        self.received[number] += 1
        self._acd.receive(packet, at, defended_at)
        self._judge.receive(packet, at)
        if self._judge.to_send(at) is not None:
            self._judge.sent(at)
        self.by_reflex += defended_at is not None
        wanted = self._judge.next_event()
        if isinstance(wanted, acd.Conflict) and defended_at is not None:
            assert self._long, packet
            self.late += 1
        self._long = number % 4 == LONG
        self._take(wanted, packet)

    def _take(self, wanted: acd.Event | None, packet: ArpPacket) -> None:
        if self._acd.to_send(inf) is not None:
            return  # `sent` follows
        event = self._acd.next_event()
        assert type(event) is type(wanted), (event, wanted, packet)
        if isinstance(event, acd.Conflict):
            self.given_up += 1
            self.change()
        self.defended += isinstance(event, acd.Defended)

    def sent(self, now: float) -> None:
        self._acd.sent(now)
        assert isinstance(self._acd.next_event(), acd.Defended)
        self.defended += 1

    def refused(self, now: float) -> None:
        raise AssertionError("the kernel takes each frame")

    def to_send(self, now: float) -> ArpPacket | None:
        return None if self.idle else self._acd.to_send(now)

    def handle_timer(self, now: float) -> None:
        self._acd.handle_timer(now)

    def link_down(self, why: str, *, asked: bool = False) -> None:
        self.change()

    def keep(self) -> None:
        """It is not handed over, but its socket is."""

    state = State.BOUND

    @property
    def listen(self) -> acd.Listen:
        return acd.Listen.NOTHING if self.idle else self._acd.listen

    @property
    def reflex(self) -> ArpPacket | None:
        return None if self.idle else self._acd.reflex


LONG = 3
"""Remainder of the numbers of conflicts in frames that only the thread answers."""


def numbered(number: int, address: IPv4Address) -> bytes:
    """A conflict, by a frame of a length that the program or only the thread answers."""
    target = f"02:00:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    frame = frames.arp(frames.REQUEST, sha=RIVAL, spa=address, tha=target, tpa="169.254.0.1")
    return frames.padded(frame, [42, 56, 64, 65][number % 4])


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[34:38], "big")


def _failed(error: OSError) -> None:
    raise error


class Borders:
    """Everything that can happen, in any order, at one end of a cable; `host` has both ends."""

    def __init__(
        self, seed: int, defence: arp_socket.Defence | str, host: Namespace, other: Namespace
    ) -> None:
        self.random = Random(seed)
        self.core = Judged()
        self.host, self.other = host, other
        self.defence = defence
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.wire.setblocking(False)
        self.announced = self.heard = self.changes = self.former = 0
        self.due: set[int] = set()
        """Numbers of the conflicts that must be received."""
        self.count = 0
        self.done: Counter[str] = Counter()
        self.listener = arp_socket.ArpListener(defence)
        self.clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
        self.negotiator = self.new_negotiator()
        self.replace()

    def new_negotiator(self) -> Negotiator:
        core: Any = self.core
        made = Negotiator(self.listener.open, self.clock, lambda _: core, _failed)
        made.core = core
        return made

    def close(self) -> None:
        self.listener.close()
        self.wire.close()

    def step(self) -> None:
        what = self.random.choices([*STEPS], [*STEPS.values()])[0]
        self.done[what] += 1
        getattr(self, what)()
        self.look()

    def conflict(self) -> None:
        self.count += 1
        address = A if self.random.random() < 0.5 else B
        if address == self.core.candidate and not self.core.idle:
            self.due.add(self.count)
        self.wire.sendto(numbered(self.count, address), ("far", 3))

    def conflicts(self) -> None:
        for _ in range(self.random.randint(0, 2)):
            self.conflict()

    def pause(self) -> None:
        time.sleep(self.random.random() * SHORT)

    def idle(self) -> None:
        self.core.idle = not self.core.idle
        self.core.changes += 1
        self.poll()

    def change(self) -> None:
        self.core.change()
        self.poll()

    def replace(self) -> None:
        """Another interface of the same name."""
        if self.negotiator.attached:
            self.host.ip("link del own")
            self.lost()
        mac = self.core.mac.hex(":")
        self.host.ip(f"link add own address {mac} type veth peer name far")
        self.host.ip("link set far up")
        self.back()

    def rename(self) -> None:
        """The program and the socket do not know names; then the daemon opens the interface anew."""
        for name, new in (("own", "renamed"), ("renamed", "own")):
            self.host.ip(f"link set {name} down")
            self.host.ip(f"link set {name} name {new}")
            self.up(self.host, new)
            self.conflicts()
        self.settle()  # so it is armed
        self.lost()
        for _ in range(8):
            self.conflict()
        self.back()

    def move(self) -> None:
        """To another namespace and back: nothing is defended there."""
        self.host.ip(f"link set own netns {self.other.path}")
        self.lost()
        self.look()
        heard = self.heard
        self.up(self.other, "own")
        self.conflicts()
        self.look()
        assert self.heard == heard
        self.other.ip(f"link set own netns {self.host.path}")
        self.back()

    def lost(self) -> None:
        """As the daemon does when the kernel reports it."""
        self.negotiator.detach("it is lost")

    def up(self, where: Namespace, name: str) -> None:
        """Until both ends of the cable carry frames: before, the kernel drops them."""
        where.ip(f"link set {name} up")
        for host, end in ((where, name), (self.host, "far")):
            wait_until(lambda: link(host, end)["operstate"] == "UP", "the cable")  # noqa: B023

    def back(self) -> None:
        self.up(self.host, "own")
        index = self.host.index("own")
        assert self.negotiator.attach(Link(index, "own", self.core.mac, 1, 0, None, None, None))
        self.due.clear()
        self.changes = self.core.changes
        self.negotiator.watch()
        if self.random.random() < 0.5:
            self.reload()  # the program is being attached

    def reload(self) -> None:
        """As by an exec: the thread ends, and all else of the former program stays as it is, and is forgotten."""
        self.conflicts()
        self.listener.pause()
        self.pause()
        self.conflicts()
        self.read()
        self.conflicts()
        kept = self.negotiator.keep(self.core.mac)
        ffi.gc(self.listener._listener, None)
        self.listener = arp_socket.ArpListener(self.defence, paused=True)
        self.conflicts()
        self.negotiator = self.new_negotiator()
        core: Any = self.core
        self.negotiator.resume(kept, core, self.listener)
        self.conflicts()
        self.listener.resume()
        assert (kept.attached is None) == isinstance(self.defence, str)

    def poll(self) -> None:
        while self.negotiator.poll():
            pass
        self.negotiator.watch()

    def read(self) -> None:
        for received in self.listener.drain():
            known = self.core.received.total()
            if received.token == self.negotiator.token:
                self.negotiator.receive(received)
            # Answered for an address that was given up since, for another reason.
            former = self.core.received.total() == known
            self.former += former and received.defended_at is not None
            self.poll()

    def look(self) -> None:
        if self.changes != self.core.changes:
            self.changes = self.core.changes
            self.due.clear()  # what has come for the former address is nobody's
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self.wire.recvfrom(128)
                ours = frame[22:28] == self.core.mac and frame[28:32] == frame[38:42]
                sent = address[2] == socket.PACKET_OUTGOING
                self.announced += ours and sent
                self.heard += ours and not sent

    def settle(self) -> None:
        """All that has come is received, once; all that was sent is known to the core."""
        until = time.monotonic() + PATIENCE
        before = -1, -1
        while (
            before != (before := (self.core.defended, len(self.core.received)))
            or self.due - self.core.received.keys()
        ):
            assert time.monotonic() < until, sorted(self.due - self.core.received.keys())
            time.sleep(0.01)
            self.read()
            self.look()
        assert set(self.core.received.values()) <= {1}


SHORT = 0.003
NUMBER = 10_000
STEPS = {
    "conflict": 50,
    "read": 25,
    "poll": 10,
    "pause": 12,
    "idle": 1,
    "change": 2,
    "reload": 1,
    "rename": 0.1,
    "move": 0.1,
    "replace": 0.1,
}
"""What happens, and how often compared with the others."""


@pytest.mark.parametrize("who", ["kernel", "thread"])
def test_borders(who: str, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """def-once, def-yield, def-again: whatever comes when, it is judged once, and as the core alone would judge it."""
    monkeypatch.setattr(acd, "DEFEND_INTERVAL", SHORT)
    host, other = (stack.enter_context(Namespace("borders")) for _ in range(2))

    def run() -> None:
        defence = arp_socket.load_defence(SHORT) if who == "kernel" else ""
        if isinstance(defence, str) and defence:
            pytest.skip(defence)
        borders = Borders(0x3927, defence, host, other)
        with contextlib.closing(borders):
            core = borders.core
            for done in range(0, 5 * NUMBER, 100):
                if done >= NUMBER and core.given_up > 100 and core.by_reflex > 300:
                    assert min(borders.done[what] for what in STEPS) > 3, borders.done
                    return
                for _ in range(100):
                    borders.step()
                borders.settle()
                assert borders.announced == core.defended + borders.former + core.late
        pytest.fail(f"a busy machine, or there were too few of something: {vars(core)}")

    host.call(run)

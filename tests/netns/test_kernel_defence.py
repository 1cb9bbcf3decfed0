"""The kernel defends (csrc/defence.c): also while the daemon is stopped. Without CAP_BPF the helper's thread does."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from errno import EOPNOTSUPP, EPERM
from functools import partial
from ipaddress import IPv4Address
from math import inf
from random import Random
from typing import Any

import pytest

from autoip.core import acd
from autoip.core.arp import ArpPacket
from autoip.core.constants import Timing
from autoip.core.ipv4ll import State
from autoip.daemon.negotiator import Negotiator
from autoip.kernel import arp_socket
from autoip.kernel import tcx as kernel_tcx
from autoip.kernel.model import Link
from autoip.kernel.native import ffi
from lab import Daemon, LabError, Namespace, Port, frames, tcx

from .commands import report
from .conftest import MakeDaemon
from .helpers import (
    NETNS,
    NO_TCX,
    PATIENCE,
    RIVAL,
    WITHOUT_BPF,
    A,
    B,
    bind,
    claimed_other,
    link,
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


def defended(port: Port, since: int) -> bool:
    """Whether the address is announced within a second, by a frame that has nothing of the conflict's padding."""
    try:
        answer = port.sniffer.wait_announcement(A, 1, since=since)
    except LabError:
        return False
    assert not any(answer.data[42:])
    return True


def attached(daemon: Daemon, port: Port) -> None:
    """Wait for the program's place at the interface."""
    index = port.host.index(port.name)
    wait_until(lambda: tcx.links(daemon.pid, index, tcx.INGRESS), "the program at the interface")


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
    began = time.monotonic()
    assert defended(port, conflict(port, 64))
    time.sleep(began + INTERVAL + 0.5 - time.monotonic())
    assert defended(port, conflict(port, 56))
    since = conflict(port, 42)  # too soon
    assert not defended(port, since)
    assert not defended(port, conflict(port))
    said = len(bound.lines)
    bound.signal(signal.SIGCONT)
    other = claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)
    bound.wait_line(f"{RIVAL} claims {A}", since=said)
    found = report(bound)
    assert (found["address"], found["defences"], found["conflicts"]) == (str(other), 2, 3)
    assert not found["notes"] and "internal error" not in bound.output


def test_a_stopped_daemon_goes_on(port: Port, bound: Daemon) -> None:
    """def-once, def-yield: a defence by the kernel counts, so the next conflict soon after costs the address."""
    bound.signal(signal.SIGSTOP)
    assert defended(port, conflict(port))
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
    assert defended(port, conflict(port))
    bound.signal(signal.SIGCONT)
    claimed_other(port, A, since=since)


def test_a_killed_daemon_does_not_defend(port: Port, bound: Daemon) -> None:
    """The program goes with the process, and nothing of it is left."""
    bound.kill()
    assert not defended(port, conflict(port))
    bind(port, bound)
    attached(bound, port)
    assert defended(port, conflict(port))
    assert bound.stop() == 0
    assert not defended(port, conflict(port))


def test_abandon_never_arms(port: Port, make_by: MakeDaemon) -> None:
    """def-abandon: not even while the daemon is stopped."""
    daemon = make_by(port, *FAST, "--abandon")
    bind(port, daemon)
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    assert not defended(port, since)
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
        lambda: not any(tcx.links(bound.pid, one, tcx.INGRESS) for one in gone), "the program's end"
    )
    other.ip("link set elsewhere up")
    wait_until(lambda: link(other, "elsewhere")["operstate"] == "UP", "the other end of the move")
    assert not defended(port, conflict(port))


@pytest.mark.parametrize(("before", "why"), [(WITHOUT_BPF, EPERM), (tcx.WITHOUT, EOPNOTSUPP)])
def test_without_the_kernel_the_thread_defends(
    port: Port, make_autoip: MakeDaemon, before: Sequence[str], why: int
) -> None:
    """def-once, def-yield: one line in the log and in the status; the rest is as ever."""
    daemon = make_autoip(port, *FAST)
    daemon.command[:0] = before
    bind(port, daemon)
    assert f"{BY_DAEMON}: {kernel_tcx.why(why)}" in report(daemon)["limits"]
    assert daemon.output.count(BY_DAEMON) == 1
    daemon.signal(signal.SIGSTOP)
    since = conflict(port)
    assert not defended(port, since)
    daemon.signal(signal.SIGCONT)
    port.sniffer.wait_announcement(A, PATIENCE, since=since)
    wait_until(lambda: report(daemon)["defences"] == 1, "the report of the defence")
    since = conflict(port)
    claimed_other(port, A, since=since)
    assert not port.sniffer.announcements(A, since=since)


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
        self, seed: int, defence: arp_socket.Defence | None, host: Namespace, other: Namespace
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
        self.listener = arp_socket.ArpListener(defence, pytest.fail)
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
        self.listener = arp_socket.ArpListener(self.defence, pytest.fail, paused=True)
        self.conflicts()
        self.negotiator = self.new_negotiator()
        core: Any = self.core
        self.negotiator.resume(kept, core, self.listener)
        self.conflicts()
        self.listener.resume()
        assert (kept.attached is None) == (self.defence is None)

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
        defence = arp_socket.load_defence(SHORT) if who == "kernel" else None
        if isinstance(defence, str):
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
